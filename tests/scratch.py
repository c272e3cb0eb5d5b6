"""Scratch repositories for tests, the demo and the benchmarks: real git, deaf to the user's configuration.

An `Upstream` is the forge's side: a bare repository at ``<folder>/<owner>/<name>.git`` and a clone in which
commits are made. `Upstream.checkout` makes the host's side.
"""

from __future__ import annotations

import atexit
import json
import os
import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

GIT = shutil.which("git") or "git"
#: What git may see of the world: no user, no system configuration, no prompts, stable names and messages.
GIT_ENV = {
    "PATH": os.environ["PATH"],
    "HOME": "/nonexistent",
    "LC_ALL": "C.UTF-8",
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_TERMINAL_PROMPT": "0",
    "GIT_TEMPLATE_DIR": str(Path(__file__).resolve().parent / "git-template"),  # without git's fourteen sample hooks
    "GIT_AUTHOR_NAME": "Ada",
    "GIT_AUTHOR_EMAIL": "ada@example.org",
    "GIT_COMMITTER_NAME": "Ada",
    "GIT_COMMITTER_EMAIL": "ada@example.org",
}


def git(*args: object, cwd: Path, check: bool = True) -> str:
    """Run git in `cwd` and return its output, stripped; the exception of a failure contains its error output."""
    done = subprocess.run(
        [GIT, "-C", cwd, *map(str, args)],
        env=GIT_ENV,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        close_fds=False,  # with an absolute name and no cwd, Python 3.9 then copies no page tables of a large pytest
    )
    if check and done.returncode:
        raise AssertionError(f"git {args} in {cwd}: exit {done.returncode}\n{done.stderr}")
    return done.stdout.strip()


def git_version() -> tuple[int, ...]:
    """Which git is here, as ``(2, 39)``."""
    return tuple(map(int, git("version", cwd=Path("/")).split()[2].split(".")[:2]))


def fetched_commit(checkout: Path, text: str) -> str:
    """Return a new commit that the checkout has fetched, as far as its refs show."""
    git("-c", "user.name=a", "-c", "user.email=b", "commit", "--quiet", "--allow-empty", "-m", text, cwd=checkout)
    git("update-ref", "refs/remotes/origin/main", "HEAD", cwd=checkout)
    git("symbolic-ref", "refs/remotes/origin/HEAD", "refs/remotes/origin/main", cwd=checkout)
    return git("rev-parse", "HEAD", cwd=checkout)


class Upstream:
    """A repository as the forge keeps it."""

    def __init__(self, folder: Path, repository: str = "acme/site", branch: str = "main") -> None:
        self.repository = repository
        self.branch = branch
        self.bare = folder / f"{repository}.git"
        self.work = folder / f"{repository}.work"
        # A copy costs a tenth of the eight git processes that create a repository and its first commit.
        template = _template(branch)
        shutil.copytree(template / "bare", self.bare)
        shutil.copytree(template / "work", self.work, symlinks=True)
        self._become_origin(self.work)
        # Both have one object store, so a push only writes a ref.
        (self.work / ".git/objects").symlink_to(self.bare / "objects")

    def commit(self, files: dict[str, str | None] | None = None, message: str = "work", *options: str) -> str:
        """Commit `files` (name to text, None deletes) on the current branch, push it, return the commit id.

        `options` are for git commit.
        """
        for name, text in (files or {}).items():
            path = self.work / name
            if text is None:
                path.unlink()
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
        git("add", "--all", cwd=self.work)
        git("commit", "--quiet", "--allow-empty", "--message", message, *options, cwd=self.work)
        return self._push()

    def go_back(self, commit: str) -> None:
        """Have the current branch at an earlier commit again."""
        git("reset", "--quiet", "--hard", commit, cwd=self.work)
        self._push()

    def _push(self) -> str:
        """Let the current branch of the bare repository be at the commit of the clone; return the commit."""
        tip = self.head()
        ref = self.bare / self._current_branch()
        ref.parent.mkdir(parents=True, exist_ok=True)
        ref.write_text(f"{tip}\n")
        return tip

    def head(self) -> str:
        """Return the newest commit of the current branch."""
        ref = self.work / ".git" / self._current_branch()
        return ref.read_text().strip() if ref.is_file() else git("rev-parse", "HEAD", cwd=self.work)

    def _current_branch(self) -> str:
        """Return the full name of the current branch, or an empty string for a detached HEAD."""
        return (self.work / ".git/HEAD").read_text().strip().partition(" ")[2]

    def checkout(self, root: Path, *, nested: bool = True, **settings: str) -> Path:
        """Clone to ``<root>/<owner>/<name>`` (or ``<root>/<name>``) and set ``gitops.<key>`` from `settings`."""
        path = root / (self.repository if nested else self.repository.split("/")[1])
        path.parent.mkdir(parents=True, exist_ok=True)
        if self.is_untouched():
            self.copy_checkout(_template(self.branch) / "checkout", path)
        else:
            git("clone", "--quiet", "--no-hardlinks", self.bare, path, cwd=root)  # a forge and a host share no files
        for key, value in settings.items():
            git("config", f"gitops.{key}", value, cwd=path)
        return path

    def rename(self, repository: str) -> None:
        """Rename the repository at the forge. The clone in which commits are made follows it."""
        bare = self.bare.parents[1] / f"{repository}.git"
        bare.parent.mkdir(exist_ok=True)
        self.bare = self.bare.rename(bare)
        (self.work / ".git/objects").unlink()
        (self.work / ".git/objects").symlink_to(bare / "objects")
        self._become_origin(self.work)

    def is_untouched(self) -> bool:
        """Return True if a clone would be equal to one of the template."""
        return _contents(self.bare) == _contents(_template(self.branch) / "bare")

    def copy_checkout(self, source: Path, path: Path) -> None:
        """Copy a checkout of another untouched repository, which takes a fraction of the time of a clone."""
        shutil.copytree(source, path, symlinks=True)
        self._become_origin(path)
        git("update-index", "--refresh", cwd=path)

    def _become_origin(self, clone: Path) -> None:
        config = clone / ".git/config"
        url = json.dumps(str(self.bare), ensure_ascii=False)  # git's files quote a string in the same way
        config.write_text(re.sub("(?<=\turl = ).*", lambda _: url, config.read_text()))


def _contents(bare: Path) -> dict[str, bytes]:
    """Return what a clone takes over from a bare repository: its refs, and a configuration that may restrict it."""
    files = [bare / "HEAD", bare / "config", bare / "packed-refs", *(bare / "refs").rglob("*")]
    return {str(file.relative_to(bare)): file.read_bytes() for file in files if file.is_file()}


@cache
def _template(branch: str) -> Path:
    """Create a bare repository with one commit and two clones, once for each branch name and process.

    `work` is the clone in which `Upstream` commits, without objects; `checkout` is a host's.
    """
    folder = Path(tempfile.mkdtemp(prefix="gitops-hook-template-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    bare, work = folder / "bare", folder / "work"
    bare.mkdir()
    git("init", "--quiet", "--bare", f"--initial-branch={branch}", cwd=bare)
    git("clone", "--quiet", bare, work, cwd=folder)
    git("checkout", "--quiet", "-B", branch, cwd=work)
    (work / "README").write_text("hello\n")
    git("add", "--all", cwd=work)
    git("commit", "--quiet", "--message", "work", cwd=work)
    git("push", "--quiet", "origin", "HEAD", cwd=work)
    git("config", "maintenance.auto", "false", cwd=work)  # which git commit starts otherwise
    shutil.rmtree(work / ".git/objects")
    git("clone", "--quiet", "--no-hardlinks", bare, folder / "checkout", cwd=folder)
    return folder
