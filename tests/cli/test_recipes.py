"""The recipe of docs/deploys.md that needs pip, through a real daemon, with a wheel from a directory."""

from __future__ import annotations

import shlex
import zipfile
from pathlib import Path

from documents import code_blocks
from harness import push
from scratch import Upstream, git


def make_wheel(folder: Path, version: str) -> None:
    """Create a wheel of the module ``greeting`` in `folder`."""
    info = f"greeting-{version}.dist-info"
    files = {
        "greeting.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: greeting\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"greeting-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in {**files, f"{info}/RECORD": record}.items():
            wheel.writestr(name, text)


def test_a_deploy_installs_python_packages_into_a_venv(tmp_path, upstream: Upstream, hook, start_daemon) -> None:
    make_wheel(tmp_path, "1.0")
    make_wheel(tmp_path, "2.0")

    def requirements(version: str) -> dict[str, str]:
        return {"requirements.txt": f"--no-index\n--find-links {tmp_path}\ngreeting=={version}\n"}

    upstream.commit({".gitignore": ".venv\n", **requirements("1.0")})
    daemon = start_daemon()
    checkout = upstream.checkout(daemon.root)
    (command,) = code_blocks("docs/deploys.md", "Python packages", "sh")
    hook(*shlex.split(command.replace("acme/app", "acme/site"))[1:])
    for version in ("1.0", "2.0"):
        daemon.deliver(push("acme/site", upstream.commit({**requirements(version), "news": version})))
        assert daemon.wait_for_run(timeout=120)[1] == "updated"
        (installed,) = checkout.glob(".venv/lib/python*/site-packages/greeting.py")
        assert installed.read_text() == f"VERSION = '{version}'\n"
        assert git("status", "--porcelain", cwd=checkout) == ""
