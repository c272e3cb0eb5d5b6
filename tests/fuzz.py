"""Coverage-guided fuzzing of the request path (atheris, libFuzzer): ``make fuzz``, or

fuzz.py FOLDER [libFuzzer's options], where FOLDER holds the corpus.

An input that fails is stored in tests/cases. The ordinary tests run every file there.
"""

from __future__ import annotations

import json
import re
import sys
import tempfile
from pathlib import Path

import atheris

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "receiver"), str(HERE / "httpd"), str(HERE.parent)]

with atheris.instrument_imports(include=["gitops_hook"]):
    from raw_requests import CASES
    from request_path import RequestPath, check_log_lines
    from test_forges import PUSHES
    from test_request import ENVIRONS, REQUESTS

    from gitops_hook.receiver.forges import FORGES


def seed(folder: Path) -> Path:
    """Write the requests of the tests as the initial corpus. Return the path of a dictionary with their words."""
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
    # An input that takes a minute is a hang. The limit on memory is many times the usual.
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
