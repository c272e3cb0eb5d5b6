"""The deploy, the health check, the rollback, and the settings that prevent a deploy."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from conftest import Site, tool
from scratch import git, git_version

#: A deploy command that records the deployed commit.
TRACING = 'echo "$GITOPS_AFTER" >>"$TRACE"'


def deployed(site: Site) -> list[str]:
    """Return the commits that TRACING recorded, in order."""
    trace = site.folder / "trace"
    return trace.read_text().split() if trace.exists() else []


def test_a_run_ends_before_the_daemon_when_memory_is_exhausted(synced: Site) -> None:
    synced.upstream.commit({"page": "1\n"})
    synced.set("deploy", "cat /proc/self/oom_score_adj > ../score")
    assert synced.run().outcome == "updated"
    assert (synced.path.parent / "score").read_text() == "500\n"


def test_deploy_environment(site: Site) -> None:
    site.checkout()
    old = site.head()
    names = " ".join(
        f"GITOPS_{name}" for name in ["ROOT", "REPOSITORY", "REF", "BEFORE", "AFTER", "EVENT", "DELIVERY", "RUN"]
    )
    site.set(
        "deploy",
        f'{{ pwd; for name in {names}; do echo "${{!name}}"; done; env; }} >>"$TRACE"; echo to-the-log',
    )
    tip = site.upstream.commit({"page": "1\n"})
    run = site.run(
        GITOPS_EVENT="push",
        GITOPS_DELIVERY="guid",
        GITOPS_RUN="7",
        GITOPS_AFTER="f" * 40,
        GITOPS_CLONE_URL="x",
    )
    lines = (site.folder / "trace").read_text().splitlines()
    assert lines[:9] == [
        str(site.path),
        str(site.root),
        "acme/site",
        "refs/heads/main",
        old,
        tip,
        "push",
        "guid",
        "7",
    ]
    kept = {line.partition("=")[0] for line in lines[9:]}
    assert not kept & {
        "GITOPS_RESULT",
        "GITOPS_CLONE_URL",
        "GIT_DIR",
        "GIT_WORK_TREE",
        "GIT_ASKPASS",
        "GIT_SSH_COMMAND",
    }
    assert "to-the-log" in run.output


def test_deploy_runs_only_after_a_move_or_if_pending(site: Site) -> None:
    site.checkout(deploy=TRACING)
    first = site.head()
    assert deployed(site) == [first], "a checkout that was never deployed has a pending deploy"
    site.run()
    tip = site.upstream.commit()
    site.run()
    site.run()
    assert deployed(site) == [first, tip]


def test_result_has_the_time_of_each_step(synced: Site) -> None:
    assert list(synced.run().steps) == ["fetched"]
    began = time.time()
    synced.upstream.commit()
    moved = synced.run()
    assert list(moved.steps) == ["fetched", "deployed"]  # without gitops.deploy, moving the tree is the deploy
    synced.set("deploy", "true")
    synced.set("health", "true")
    synced.upstream.commit()
    run = synced.run()
    assert list(run.steps) == ["fetched", "deployed", "healthy"]
    times = [began, *moved.steps.values(), *run.steps.values(), time.time()]
    assert times == sorted(times)
    synced.set("deploy", "false")
    synced.upstream.commit()
    assert list(synced.run().steps) == ["fetched"]


def test_the_steps_can_be_followed_during_the_run(synced: Site) -> None:
    synced.set("deploy", f"cp {synced.folder}/result {synced.folder}/result-during-deploy")
    synced.upstream.commit()
    fetched = synced.run().steps["fetched"]
    assert float((synced.folder / "result-during-deploy").read_text().removeprefix("fetched=")) == fetched


def test_a_roll_back_keeps_the_time_of_the_failed_check(sick: Site) -> None:
    sick.set("deploy", f"date +%s.%N >>{sick.folder}/deployed-at")
    run = sick.run()
    assert list(run.steps) == ["fetched", "deployed", "healthy"]
    first, again = map(float, (sick.folder / "deployed-at").read_text().split())
    assert first < run.steps["deployed"] < run.steps["healthy"] < again


@pytest.mark.parametrize(
    ("clock", "form"),
    [
        ("unset EPOCHREALTIME", r"fetched=\d{10}"),  # as bash 4.4
        (
            "unset EPOCHREALTIME; EPOCHREALTIME=1700000000,000042",
            r"fetched=1700000000\.000042",
        ),  # where comma is the sign
    ],
)
def test_times_have_one_format_in_every_bash_and_locale(synced: Site, clock: str, form: str) -> None:
    (synced.folder / "clock").write_text(clock)
    synced.run(BASH_ENV=str(synced.folder / "clock"))
    assert re.fullmatch(form, (synced.folder / "result").read_text().splitlines()[-1])


def test_a_failed_deploy_stays_pending(synced: Site) -> None:
    synced.set("deploy", f"{TRACING}; exit 3")
    tip = synced.upstream.commit()
    run = synced.run()
    assert run.outcome == "deploy-failed" and "exit 3" in run.message and tip[:10] in run.message
    assert run.after == tip == synced.head() and synced.ref("refs/gitops/deployed") != tip
    assert synced.run(GITOPS_REF="refs/heads/main", GITOPS_AFTER=tip).outcome == "deploy-failed"
    synced.set("deploy", TRACING)
    assert synced.run().outcome == "updated" and synced.is_at_upstream() and deployed(synced) == [tip] * 3


def test_a_failed_deploy_stays_pending_if_upstream_goes_back(synced: Site) -> None:
    old = synced.head()
    synced.set("deploy", f"{TRACING}; [[ $GITOPS_AFTER == {old} ]]")
    synced.upstream.commit()
    assert synced.run().outcome == "deploy-failed"
    synced.upstream.go_back(old)
    assert synced.run().outcome == "updated" and deployed(synced)[-1] == old


def test_a_pending_deploy_survives_a_kill_while_its_note_is_written(synced: Site) -> None:
    """A run dies while it writes its note: prlimit makes every write fail."""
    old = synced.head()
    synced.set("deploy", f"{TRACING}; [[ $GITOPS_AFTER == {old} ]]")
    synced.upstream.commit()
    assert synced.run().outcome == "deploy-failed"
    synced.upstream.go_back(old)
    stop = 'for it; do [[ $it != switch ]] || { "$real" "$@"; exec prlimit --pid "$PPID" --fsize=0; }; done'
    assert synced.start(PATH=tool(synced, stop)).wait() != 0
    assert synced.head() == old and deployed(synced)[-1] != old, "it died between the move and the deploy"
    assert synced.run().outcome == "updated" and deployed(synced)[-1] == old


def test_background_processes_of_a_deploy_hold_neither_lock_nor_run(synced: Site) -> None:
    pid = synced.folder / "pid"
    synced.set("deploy", f"sleep 300 & echo $! >{pid}")
    synced.upstream.commit()
    start = time.monotonic()
    done = subprocess.run(synced.command(), env=synced.environment, stdout=subprocess.DEVNULL, check=False)
    assert done.returncode == 0 and time.monotonic() - start < 10
    try:
        synced.upstream.commit()
        synced.set("deploy", "true")
        assert synced.run().outcome == "updated"
        held = subprocess.run(
            ["ls", "-l", f"/proc/{pid.read_text().strip()}/fd"], capture_output=True, text=True, check=True
        )
        assert str(synced.path) not in held.stdout
    finally:
        os.kill(int(pid.read_text()), signal.SIGKILL)


def test_health_check_is_repeated_until_it_succeeds(synced: Site) -> None:
    synced.set("deploy", TRACING)
    tries = synced.folder / "tries"
    synced.set("health", f"echo >>{tries}; [[ $(wc -l <{tries}) -ge 2 ]]")
    synced.upstream.commit()
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert len(tries.read_text().splitlines()) == 2


@pytest.fixture()
def sick(synced: Site) -> Site:
    """A checkout whose health check fails if the file `sick` exists; upstream has just added it."""
    synced.set("deploy", TRACING)
    synced.set("health", "[[ ! -e sick ]]")
    synced.set("healthTimeout", "0")
    synced.good = synced.upstream.commit({"page": "good\n"})
    assert synced.run().outcome == "updated"
    synced.bad = synced.upstream.commit({"sick": "\n", "page": "bad\n"})
    return synced


def test_an_unhealthy_commit_is_rolled_back(sick: Site) -> None:
    run = sick.run()
    assert run.outcome == "rolled-back" and sick.bad[:10] in run.message and run.fix.endswith("--force site")
    assert (run.after, sick.head()) == (sick.good, sick.good)
    assert (sick.path / "page").read_text() == "good\n" and not sick.status()
    assert sick.ref("refs/gitops/bad") == sick.bad and sick.ref("refs/gitops/deployed") == sick.good
    assert deployed(sick)[-2:] == [sick.bad, sick.good]


def test_a_bad_commit_is_not_deployed_again(sick: Site) -> None:
    sick.run()
    before = deployed(sick)
    assert sick.run().outcome == "rolled-back" and sick.run(GITOPS_AFTER=sick.bad).outcome == "rolled-back"
    assert deployed(sick) == before and sick.head() == sick.good


def test_a_better_commit_replaces_a_bad_one(sick: Site) -> None:
    sick.run()
    sick.upstream.commit({"sick": None})
    assert sick.run().outcome == "updated" and sick.is_at_upstream() and not sick.ref("refs/gitops/bad")


def test_force_deploys_a_bad_commit(sick: Site) -> None:
    sick.run()
    sick.set("health", "true")
    assert sick.run("--force").outcome == "updated" and sick.is_at_upstream() and not sick.ref("refs/gitops/bad")


def test_force_deploys_once_more(sick: Site) -> None:
    sick.set("health", "true")
    sick.run()
    assert sick.run("--force").outcome == "updated"
    assert deployed(sick)[-2:] == [sick.bad, sick.bad]


def test_a_failed_rollback_is_reported(sick: Site) -> None:
    sick.set("deploy", f"{TRACING}; [[ -e sick ]]")
    run = sick.run()
    assert run.outcome == "deploy-failed" and sick.good[:10] in run.message and sick.bad[:10] in run.message
    assert sick.head() == sick.good
    sick.set("deploy", TRACING)
    assert sick.run().outcome == "rolled-back" and deployed(sick)[-1] == sick.good, "the deploy is pending"
    before = deployed(sick)
    assert sick.run().outcome == "rolled-back" and deployed(sick) == before


def test_local_commits_beside_a_bad_commit_are_kept(sick: Site) -> None:
    sick.run()
    mine = sick.commit_here()
    assert sick.run().outcome == "diverged" and sick.head() == mine
    sick.set("diverged", "reset")
    run = sick.run()
    assert run.outcome == "rolled-back" and "refs/gitops/backup" in run.message and sick.head() == sick.good
    assert sick.ref("refs/gitops/backup") == mine


def test_local_work_prevents_a_rollback(sick: Site) -> None:
    sick.set("deploy", f"{TRACING}; [[ ! -e sick ]] || echo mine >page")
    run = sick.run()
    assert run.outcome == "deploy-failed" and "page" in run.message
    assert (sick.path / "page").read_text() == "mine\n"


@pytest.mark.parametrize("moment", ["deploy", "health"])
def test_a_commit_made_before_a_rollback_is_kept(sick: Site, moment: str) -> None:
    commit = "git commit --quiet --allow-empty --message mine"
    if moment == "deploy":
        sick.set("deploy", f"[[ ! -e sick ]] || {commit}")
    else:
        sick.set("health", f"[[ ! -e sick ]] || {{ {commit}; false; }}")
    run = sick.run()
    mine = sick.head()
    assert sick.git("log", "--format=%s", "-1") == "mine" and sick.ref("refs/heads/main") == mine
    assert run.outcome == "diverged" and mine[:10] in run.message and "gitops.health did not succeed" in run.message
    assert sick.ref("refs/gitops/bad") == sick.bad
    sick.set("diverged", "reset")
    assert sick.run().outcome == "rolled-back" and sick.head() == sick.good
    assert sick.ref("refs/gitops/backup") == mine


def test_rollback_without_an_earlier_deploy(site: Site) -> None:
    site.upstream.checkout(site.root, health="false", healthTimeout="0")
    run = site.run()
    assert run.outcome == "deploy-failed" and not site.ref("refs/gitops/deployed") and not site.ref("refs/gitops/bad")


@pytest.mark.parametrize("moment", ["deploy", "health"])
def test_a_killed_rollback_is_completed(sick: Site, moment: str) -> None:
    marker = sick.folder / "moment"
    os.mkfifo(marker)
    stop = f"[[ -e sick || ! -p {marker} ]] || {{ echo >{marker}; sleep 60; }}"
    sick.set("deploy", f"{stop if moment == 'deploy' else ':'}; {TRACING}")
    if moment == "health":
        sick.set("health", f"{stop}; [[ ! -e sick ]]")
    run = sick.start()
    marker.read_text()
    sick.kill(run)
    marker.unlink()
    assert sick.run().outcome == "rolled-back"
    assert sick.head() == sick.good and deployed(sick)[-1] == sick.good
    before = deployed(sick)
    assert sick.run().outcome == "rolled-back" and deployed(sick) == before


def test_a_hanging_health_check_is_stopped(synced: Site) -> None:
    synced.set("health", "sleep 60")
    synced.set("healthTimeout", "1")
    synced.upstream.commit()
    start = time.monotonic()
    run = synced.run()
    assert run.outcome == "deploy-failed" and "was restored, but there gitops.health" in run.message
    assert time.monotonic() - start < 15


def test_health_timeout_zero_allows_one_attempt(synced: Site) -> None:
    synced.set("healthTimeout", "0")
    synced.set("health", "sleep 1.5")
    synced.upstream.commit()
    assert synced.run().outcome == "updated"
    tries = synced.folder / "tries"
    synced.set("health", f"echo >>{tries}; false")
    synced.upstream.commit()
    assert synced.run().outcome == "deploy-failed"
    assert len(tries.read_text().splitlines()) == 2, "one, and one after the roll-back"


def test_deploy_runs_only_if_its_paths_changed(synced: Site) -> None:
    synced.set("deploy", TRACING)
    synced.run("--force")
    synced.set("paths", "web/")
    for pattern in ("docs/*.md", "shared", "with space"):
        synced.git("config", "--add", "gitops.paths", pattern)
    before = len(deployed(synced))
    synced.upstream.commit({"api/x": "1\n", "docs/x.txt": "1\n"})
    run = synced.run()
    assert run.outcome == "updated" and "gitops.paths" in run.message and synced.is_at_upstream()
    assert len(deployed(synced)) == before
    for name in ("web/x", "docs/x.md", "shared/x", "with space"):
        synced.upstream.commit({name: "1\n"})
        synced.run()
    assert len(deployed(synced)) == before + 4
    for name in ("with", "space"):
        synced.upstream.commit({name: "1\n"})
        synced.run()
    assert len(deployed(synced)) == before + 4, "a value is one pattern"


def test_deploy_runs_if_changed_paths_are_uncertain(synced: Site) -> None:
    synced.set("deploy", f"{TRACING}; false")
    synced.set("paths", "web")
    synced.upstream.commit({"web/x": "1\n"})
    assert synced.run().outcome == "deploy-failed"
    synced.upstream.commit({"web/x": None})
    synced.set("deploy", TRACING)
    synced.run()
    assert len(deployed(synced)) == 2, "nothing differs from what was last deployed, but a deploy was begun since"
    synced.git("update-ref", "-d", "refs/gitops/deployed")
    synced.set("paths", "web")
    synced.run()
    assert len(deployed(synced)) == 3, "nothing is known of an earlier deploy"


@pytest.fixture()
def signing(synced: Site) -> Site:
    """A checkout that trusts the ssh key with which upstream's commits are signed."""
    key = synced.folder / "key"
    if git_version() < (2, 34):
        pytest.skip("git signs with ssh keys since 2.34")
    if not shutil.which("ssh-keygen"):
        pytest.skip("no ssh-keygen on this machine")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    (synced.folder / "allowed").write_text(f"ada@example.org {(synced.folder / 'key.pub').read_text()}")
    synced.git("config", "gpg.ssh.allowedSignersFile", synced.folder / "allowed")
    for name, value in {"gpg.format": "ssh", "user.signingKey": key, "commit.gpgSign": "true"}.items():
        git("config", name, value, cwd=synced.upstream.work)
    synced.set("verify", "true")
    synced.set("deploy", TRACING)
    return synced


def test_only_signed_commits_are_deployed(signing: Site) -> None:
    signing.upstream.commit({"page": "signed\n"})
    assert signing.run().outcome == "updated" and signing.is_at_upstream()
    git("config", "commit.gpgSign", "false", cwd=signing.upstream.work)
    before, earlier = signing.head(), deployed(signing)
    bad = signing.upstream.commit({"page": "unsigned\n"})
    run = signing.run()
    assert run.outcome == "unverified" and bad[:10] in run.message
    assert signing.run("--force").outcome == "unverified"
    assert (
        signing.head() == before and (signing.path / "page").read_text() == "signed\n" and deployed(signing) == earlier
    )
    git("config", "commit.gpgSign", "true", cwd=signing.upstream.work)
    signing.upstream.commit({"page": "signed again\n"})
    assert signing.run().outcome == "updated" and signing.is_at_upstream()


def test_an_untrusted_key_is_unverified(signing: Site) -> None:
    (signing.folder / "allowed").write_text("")
    signing.upstream.commit({"page": "1\n"})
    assert signing.run().outcome == "unverified"


def test_paused(synced: Site) -> None:
    synced.set("paused", "true")
    before = synced.git("for-each-ref")
    synced.upstream.commit({"page": "1\n"})
    run = synced.run()
    assert run.outcome == "paused" and "gitops.paused" in run.message and synced.git("for-each-ref") == before
    assert synced.run("--force").outcome == "paused"
    synced.git("config", "--unset", "gitops.paused")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("paused", "perhaps"),
        ("paused", "2026-01-31 12:00"),
        ("verify", "2"),
        ("submodules", "x"),
        ("diverged", "merge"),
        ("dirty", "reset"),
        ("healthTimeout", "soon"),
        ("timeout", "0"),
        ("tag", "v 1"),
        ("branch", "-x"),
        ("branch", "a b"),
        ("branch", "a..b"),
        ("branch", "x/"),
        ("approved", "main"),
        ("paths", ":(nonsense)web"),
        ("paths", "../outside"),
    ],
)
def test_a_bad_setting_is_named(synced: Site, key: str, value: str) -> None:
    synced.set(key, value)
    run = synced.run()
    assert run.outcome == "usage" and f"gitops.{key}" in run.message and value in run.message


@pytest.mark.parametrize("value", ["true", "yes", "on", "1", "TRUE"])
def test_a_boolean_as_git_writes_it(synced: Site, value: str) -> None:
    synced.set("paused", value)
    assert synced.run().outcome == "paused"


def test_only_the_checkout_s_own_settings_count(synced: Site) -> None:
    mine = synced.home("[gitops]\n\tpaused = true\n\tdeploy = touch ran\n")
    synced.upstream.commit({".gitconfig": "[gitops]\n\tdeploy = touch ran\n"})
    assert synced.run(**mine).outcome == "updated"
    assert not (synced.path / "ran").exists()
    synced.git("config", "include.path", Path(mine["HOME"]) / ".gitconfig")
    assert synced.run().outcome == "paused", "what it includes is its own"


def test_a_deploy_that_ends_the_daemon_is_recorded(synced: Site) -> None:
    """A deploy restarts its own service without waiting. The run then ends normally."""
    synced.set("deploy", f"{TRACING}; (sleep 0.2; kill -TERM $PPID) & disown")
    synced.upstream.commit()
    run = synced.run()
    assert run.outcome == "updated" and synced.is_at_upstream()
    assert synced.run().outcome == "unchanged" and len(deployed(synced)) == 1


def test_sigterm_ends_a_run(synced: Site) -> None:
    marker = synced.folder / "deploying"
    os.mkfifo(marker)
    synced.set("deploy", f"echo >{marker}; sleep 60")
    tip = synced.upstream.commit()
    run = synced.start()
    marker.read_text()
    start = time.monotonic()
    os.killpg(run.pid, signal.SIGTERM)
    assert run.wait(10) == -signal.SIGTERM and time.monotonic() - start < 2
    synced.set("deploy", TRACING)
    assert synced.run().outcome == "updated" and deployed(synced) == [tip]


def test_a_pause_names_who_paused_and_why(synced: Site) -> None:
    synced.set("paused", "2999-01-31T12:00:00Z")
    synced.set("pausedBy", "ada 2026-01-31T12:00:00Z tuning the database")
    run = synced.run()
    assert run.outcome == "paused"
    for part in ("ada", "2026-01-31T12:00:00Z", "tuning the database", "2999-01-31T12:00:00Z"):
        assert part in run.message


def test_a_pause_that_has_ended_is_removed(synced: Site) -> None:
    synced.set("paused", "2026-01-31T12:00:00Z")
    synced.set("pausedBy", "ada 2026-01-31T11:00:00Z")
    synced.upstream.commit({"page": "1\n"})
    assert "would move" in synced.run("--dry-run").message
    assert synced.git("config", "gitops.paused")
    assert synced.run().outcome == "updated" and synced.is_at_upstream()
    assert "paused" not in synced.git("config", "--local", "--list")
