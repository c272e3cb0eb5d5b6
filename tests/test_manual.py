"""The man page and the completion for bash list every command, flag and setting."""

from __future__ import annotations

import argparse
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from harness import SOURCE
from scratch import Upstream

from gitops_hook.cli.parser import build_parser
from gitops_hook.config import OPTIONS

PAGE = (SOURCE / "docs/gitops-hook.8").read_text()
COMPLETION = SOURCE / "docs/gitops-hook.bash"


def subcommands() -> dict[str, set[str]]:
    """Return the long flags of each command."""
    (commands,) = [action for action in build_parser()._actions if isinstance(action, argparse._SubParsersAction)]
    return {
        name: {flag for action in parser._actions for flag in action.option_strings if flag.startswith("--")}
        for name, parser in commands.choices.items()
    }


def complete(*words: str, **environ: str) -> set[str]:
    """Return the completions of the last of `words`."""
    program = (
        f'. {COMPLETION}; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _gitops_hook; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(
        ["bash", "-uc", program, "bash", "gitops-hook", *words],
        env={"PATH": "/usr/bin:/bin", **environ},
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    return set(done.stdout.split())


# -- the man page --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command", [["mandoc", "-Tlint", "-Wwarning"], ["groff", "-mandoc", "-Tutf8", "-ww", "-z"]], ids=lambda words: words[0]
)  # fmt: skip
def test_the_man_page_is_clean(command):
    if not shutil.which(command[0]):
        pytest.skip(f"no {command[0]} on this machine")
    done = subprocess.run([*command, SOURCE / "docs/gitops-hook.8"], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", subcommands())
def test_the_man_page_lists_every_command_and_flag(name):
    assert re.search(rf"^\.It Cm {name}$", PAGE, re.MULTILINE)
    assert re.search(rf"^\.Cm {name}\b|^\.Cm \w+ \| {name}\b", PAGE, re.MULTILINE)
    if name != "serve":
        listed = set(re.findall(r"Fl Fl ([a-z-]+)", PAGE))
        assert {flag[2:] for flag in subcommands()[name]} <= listed


def test_the_man_page_lists_every_setting():
    for option in OPTIONS:
        flag = f" Pq Fl Fl {option.flag[2:]}" if option.flag else ""
        row = f".It Ev {option.env}{flag}\n{option.help}; default: {option.shown}.\n".replace("`", "")
        assert row in PAGE, f"docs/gitops-hook.8 must hold:\n{row}"


# -- completion ----------------------------------------------------------------------------------------------------


def test_every_command_is_completed():
    assert complete("") == {*subcommands(), "--help", "--version"}
    assert complete("st") == {"status"}


@pytest.mark.parametrize("name", subcommands())
def test_every_flag_is_completed(name):
    assert complete(name, "--") == subcommands()[name]


def test_repositories_are_completed_from_the_root(tmp_path):
    Upstream(tmp_path / "forge").checkout(tmp_path / "root")
    Upstream(tmp_path / "forge", "acme/blog").checkout(tmp_path / "root", nested=False)
    assert complete("sync", "", GITOPS_ROOT=str(tmp_path / "root")) == {"acme/site", "blog"}
    assert complete("sync", "acme/site", "bl", GITOPS_ROOT=str(tmp_path / "root")) == {"blog"}
    assert complete("status", "--root", str(tmp_path / "root"), "a") == {"acme/site"}
    assert complete("status", "", GITOPS_ROOT=str(tmp_path / "none")) == set()
    assert complete("serve", "", GITOPS_ROOT=str(tmp_path / "root")) == set()


def test_values_are_completed(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    assert complete("status", "--root", f"{tmp_path}/") == {f"{tmp_path}/folder"}
    assert complete("serve", "--webhook-secret-file", f"{tmp_path}/f") == {f"{tmp_path}/file", f"{tmp_path}/folder"}
    assert complete("serve", "--log-format", "") == {"text", "json"}


def test_bash_registers_the_completion():
    done = subprocess.run(["bash", "-c", f". {COMPLETION}; complete -p gitops-hook"], capture_output=True, text=True)
    assert done.stdout == "complete -F _gitops_hook gitops-hook\n"
    assert Path(COMPLETION).stat().st_mode & 0o111 == 0
