"""Coverage-guided fuzzing of the way of a request (atheris, libFuzzer): ``make fuzz``, or

fuzz.py FOLDER [libFuzzer's options], with the inputs that it has found worth keeping in FOLDER.

What makes it fail is kept in tests/cases, where the ordinary tests try it ever after.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent)]

with atheris.instrument_imports(include=["gitops_hook"]):
    from raw_requests import CASES
    from request_path import RequestPath, check_log_lines
    from test_forges import PUSHES
    from test_request import ENVIRONS, REQUESTS

    from gitops_hook.receiver.forges import FORGES


def seed(folder: Path) -> Path:
    """Begin with what the tests know already; returns a dictionary of its words."""
    folder.mkdir(parents=True, exist_ok=True)
    requests = [
        *(case.raw for case in CASES),
        *(raw + b"\r\n\r\n" for raw, _ in [*ENVIRONS.values(), *REQUESTS.values()]),
    ]
    inputs = [b"\0" + raw[:4000] for raw in requests]
    for index, forge in enumerate(FORGES):
        for payload in PUSHES[forge.name][1:]:
            inputs += [bytes([4 * index + how]) + json.dumps(payload).encode() for how in (1, 2, 3)]
    for number, case in enumerate(inputs):
        (folder / f"seed-{number}").write_bytes(case)
    words = {word.decode() for case in inputs for word in re.findall(rb"[A-Za-z][A-Za-z0-9_-]{2,31}", case)}
    dictionary = folder.with_name(folder.name + ".dict")
    dictionary.write_text("".join(f'"{word}"\n' for word in sorted(words)))
    return dictionary


def main() -> None:
    corpus, *options = sys.argv[1:]
    dictionary = seed(Path(corpus))
    check_log_lines()
    path = RequestPath(Path(tempfile.mkdtemp(prefix="gitops-hook-fuzz-")))
    # A minute for one input is a hang; memory is what the journal's and the corpus's pages take, many times over.
    limits = [
        "-timeout=60",
        "-rss_limit_mb=2048",
        "-max_len=8192",
        f"-dict={dictionary}",
        f"-artifact_prefix={HERE}/cases/",
    ]
    atheris.Setup([sys.argv[0], *limits, *options, corpus], path.judge_case)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
