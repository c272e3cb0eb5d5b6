"""One run: real scripts in real process groups, and what is left of them."""

from __future__ import annotations

import os
import re
import resource
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from disks import fill, small_disk
from harness import processes_of, until

from gitops_hook.outcomes import BY_SCRIPT
from gitops_hook.sync import runner as module
from gitops_hook.sync.run_log import HEAD_BYTES, TAIL_BYTES, BoundedLog, last_lines, read_log
from gitops_hook.sync.runner import Result, Runner, Task, classify_exit

SOURCE = Path(__file__).resolve().parents[2]
TASK = Task("acme/site", 1)
ENVIRON = {"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"}


class Bench:
    """A runner, the script that it runs, and the folder where both leave things."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.log = folder / "1.log"
        self.script = folder / "script"
        self.environ = dict(ENVIRON)

    def write(self, text: str) -> None:
        # By rename: to execute a file that some fork of ours still has open for writing would fail (ETXTBSY).
        new = self.folder / "new"
        new.write_text(f"#!/bin/bash\n{text}\n")
        new.chmod(0o755)
        new.rename(self.script)

    def runner(self) -> Runner:
        return Runner(self.script, self.folder, self.environ)

    def run(self, text: str, task: Task = TASK, limit: int = 60) -> Result:
        self.write(text)
        return self.runner().run(task, self.log, limit)

    def printed(self) -> str:
        return self.log.read_text()


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


@pytest.fixture
def fifo(tmp_path: Path) -> Iterator[Callable[[], bytes]]:
    """Reads what came through ``$0.fifo`` up to its end: the end of every process that has it open."""
    path = tmp_path / "script.fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    yield lambda: b"".join(iter(lambda: os.read(reader, 4096), b""))
    os.close(reader)


def started(path: Path) -> None:
    """Wait until the script has made the file `path`."""
    deadline = time.monotonic() + 20
    while not path.exists():
        assert time.monotonic() < deadline, f"no {path}"
        time.sleep(0.005)


def wait_for_sleeps(root: Path, count: int) -> None:
    """Wait until the runs under `root` have `count` processes of sleep(1), so that none of their shells forks any more.

    Bash blocks SIGTERM while it forks, and a child that it starts then does not get the signal of its group.
    """

    def sleeps() -> int:
        names = []
        for process in processes_of(root):
            with suppress(OSError):  # it has ended
                names.append(Path(f"/proc/{process}/comm").read_text())
        return names.count("sleep\n")

    until(lambda: sleeps() == count)


class TestJudging:
    @pytest.mark.parametrize(
        ("status", "said", "outcome"),
        [
            *((status, outcome, outcome) for status, allowed in BY_SCRIPT.items() for outcome in allowed),
            *((status, "", allowed[0]) for status, allowed in BY_SCRIPT.items()),
            *((status, "nonsense", allowed[0]) for status, allowed in BY_SCRIPT.items()),
            (70, "updated", "deploy-failed"),
            (0, "deploy-failed", "updated"),
            (0, "timed-out", "updated"),
            (1, "updated", "failed"),
            (124, "", "failed"),
            (125, "", "failed"),
            (127, "", "failed"),
            (255, "", "failed"),
            (130, "", "interrupted"),
            (137, "", "interrupted"),
            (143, "", "interrupted"),
            (-signal.SIGTERM, "", "interrupted"),
            (-signal.SIGSEGV, "updated", "interrupted"),
        ],
    )
    def test_within_the_limit_the_exit_status_decides(self, status: int, said: str, outcome: str):
        assert classify_exit(status, {"outcome": said})[:2] == (outcome, status)

    @pytest.mark.parametrize(
        ("status", "outcome"),
        [(124, "timed-out"), (137, "timed-out"), (143, "timed-out"), (-9, "timed-out"), (0, "updated"), (1, "failed")],
    )
    def test_beyond_the_limit_timeout_reports(self, status: int, outcome: str):
        assert classify_exit(status, {}, timed_out=True).outcome == outcome

    def test_no_credential_is_logged(self):
        assert classify_exit(0, {"message": "https://ada:hidden@host/ is here"}).message == "https://***@host/ is here"

    @pytest.mark.parametrize(
        ("written", "kept"),
        [
            ("sudo -u gitops-hook git -C '/srv/a b' stash", "sudo -u gitops-hook git -C '/srv/a b' stash"),
            ("git \x1b[31m", ""),
            ("git \u202e", ""),
            ("x" * 4001, ""),
        ],
    )
    def test_a_fix_is_kept_unchanged_or_not_at_all(self, written: str, kept: str):
        assert classify_exit(65, {"fix": written}).fix == kept

    def test_messages_are_escaped_and_limited(self):
        result = classify_exit(0, {"before": "a\x1b[31m", "after": "\u202eb", "message": "x" * 5000})
        assert result[2:5] == (r"a\x1b[31m", r"\u202eb", "x" * 1000)


class TestEnvironment:
    def test_the_script_environment_is_the_contract_and_the_allowlist(self, bench: Bench):
        inherited = {name: "C" if name[:2] in ("LC", "LA") else f"value of {name}" for name in module.INHERITED}
        inherited["PATH"] = ENVIRON["PATH"]
        strangers = (
            "GITHUB_WEBHOOK_SECRET", "GITHUB_WEBHOOK_SECRET_FILE", "CREDENTIALS_DIRECTORY", "GIT_DIR", "GIT_WORK_TREE",
            "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "NOTIFY_SOCKET", "WATCHDOG_USEC", "INVOCATION_ID", "BASH_ENV",
            "LD_PRELOAD", "PYTHONPATH", "AWS_SECRET_ACCESS_KEY", "GITOPS_LISTEN",
        )  # fmt: skip
        bench.environ.update(inherited)
        bench.environ.update(dict.fromkeys(strangers, "very secret"))
        bench.run(
            "cat /proc/$$/environ",
            Task("acme/site", 7, "refs/heads/main", "1" * 40, "push", "guid", 3, "https://clone"),
        )
        seen = dict(entry.split("=", 1) for entry in bench.printed().rstrip("\0").split("\0"))
        assert seen == {
            **inherited,
            "GITOPS_ROOT": str(bench.folder),
            "GITOPS_REPOSITORY": "acme/site",
            "GITOPS_REF": "refs/heads/main",
            "GITOPS_AFTER": "1" * 40,
            "GITOPS_EVENT": "push",
            "GITOPS_DELIVERY": "guid",
            "GITOPS_DELIVERIES": "3",
            "GITOPS_RUN": "7",
            "GITOPS_RESULT": str(bench.log.with_suffix(".result")),
            "GITOPS_CLONE_URL": "https://clone",
            "GITOPS_TIMEOUT": "60",
            "GITOPS_RUN_TOKEN": seen["GITOPS_RUN_TOKEN"],
        }
        assert re.fullmatch("[0-9a-f]{32}", seen["GITOPS_RUN_TOKEN"])
        assert "very secret" not in bench.printed()

    @pytest.mark.parametrize(
        ("line", "believed"),
        [
            ("fetched=$EPOCHREALTIME", True),
            ("fetched=$(date +%s)", True),  # an old bash has whole seconds, which may be before the start
            ("fetched=$(($(date +%s) - 9))", False),
            ("fetched=$(($(date +%s) + 9))", False),
            ("fetched=1e9", False),
            ("fetched=nan", False),
            ("fetched=", False),
            ("fetched=$(printf %0400d 1)", False),
        ],
    )
    def test_plausible_timestamps_are_accepted(self, bench: Bench, line: str, believed: bool):
        began = time.time()
        result = bench.run(f'echo "{line}" >$GITOPS_RESULT')
        assert (result.fetched is not None) == believed
        assert result.fetched is None or began <= result.fetched <= time.time()
        assert (result.deployed, result.healthy) == (None, None)

    def test_unknown_variables_are_not_set(self, bench: Bench):
        bench.run("compgen -e | grep ^GITOPS_", Task("site", 1))
        assert bench.printed().split() == [
            "GITOPS_RESULT", "GITOPS_ROOT", "GITOPS_RUN", "GITOPS_RUN_TOKEN", "GITOPS_TIMEOUT",
        ]  # fmt: skip

    @pytest.mark.parametrize(
        "value", ["$(touch pwned)", "`touch pwned`", "a b\tc", "--help", "'\"\\", "*", "a\nb", "é"]
    )
    def test_hostile_values_arrive_verbatim(self, bench: Bench, value: str):
        bench.run('printf "%s\\0" "$#" "$1" "$GITOPS_REF" "$GITOPS_DELIVERY"', Task(value, 1, value, "", "", value))
        assert bench.printed().split("\0") == ["1", value, value, value, ""]
        assert not Path("pwned").exists()

    def test_standard_input_is_empty_and_no_other_descriptor_is_open(self, bench: Bench):
        with (bench.folder / "open").open("w") as ours:
            os.set_inheritable(ours.fileno(), True)
            bench.run("readlink /proc/$$/fd/0; ls /proc/$$/fd")
        assert bench.printed().split() == ["/dev/null", "0", "1", "2", "255"]  # 255 is bash's own hold on the script


class TestEnds:
    def test_the_limit_ends_the_whole_group(self, bench: Bench, fifo: Callable[[], bytes]):
        result = bench.run("exec 9>$0.fifo; (sleep 60 & sleep 60) & sleep 60", limit=1)
        assert (result.outcome, result.exit) == ("timed-out", 124)
        assert fifo() == b""

    def test_a_process_that_ignores_sigterm_is_killed_after_the_grace_period(
        self, bench: Bench, fifo: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module, "GRACE", 0.2)
        result = bench.run("exec 9>$0.fifo; trap '' TERM; (trap '' TERM; sleep 60) & sleep 60", limit=1)
        assert (result.outcome, result.exit) == ("timed-out", -signal.SIGKILL)
        assert fifo() == b""

    def test_a_deploy_that_stops_its_whole_group_is_killed_by_the_daemon(
        self, bench: Bench, fifo: Callable[[], bytes], monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(module, "GRACE", 0.2)
        result = bench.run("exec 9>$0.fifo; sleep 60 & kill -STOP 0; echo late >&9", limit=1)
        assert (result.outcome, result.exit) == ("timed-out", -signal.SIGKILL)
        assert fifo() == b""

    @pytest.mark.parametrize("who", ["$$", "$PPID"], ids=["the script", "timeout"])
    def test_a_killed_run_leaves_no_process_of_its_group(self, bench: Bench, fifo: Callable[[], bytes], who: str):
        result = bench.run(f"exec 9>$0.fifo; (trap '' TERM; sleep 3; echo late >&9) & kill -KILL {who}; sleep 60")
        assert (result.outcome, result.exit) == ("interrupted", -signal.SIGKILL)
        assert fifo() == b""

    def test_a_service_that_an_earlier_run_of_that_number_started_lives_on(self, bench: Bench):
        """After a lost journal, numbers are used again."""
        bench.run("setsid --fork bash -c 'sleep 60 & echo $! >$0.pid' $0; until [ -s $0.pid ]; do :; done")
        service = int((bench.folder / "script.pid").read_text())
        assert bench.run("kill -KILL $$").outcome == "interrupted"
        os.kill(service, signal.SIGKILL)

    def test_a_group_that_ignores_sigterm_is_killed_after_its_limit(self, bench: Bench, fifo: Callable[[], bytes]):
        result = bench.run("exec 9>$0.fifo; (trap '' TERM; sleep 5; echo late >&9) & sleep 60", limit=1)
        assert (result.outcome, result.exit) == ("timed-out", 124)
        assert fifo() == b""

    def test_a_process_outside_the_group_of_a_killed_run_survives(self, bench: Bench):
        bench.run("setsid sleep 60 & echo $! >$0.pid; until [ -s $0.pid ]; do :; done; sleep 0.2; kill -KILL $$")
        os.kill(int((bench.folder / "script.pid").read_text()), signal.SIGKILL)

    def daemon(self, bench: Bench) -> subprocess.Popen[bytes]:
        """A process with a current run, to be killed."""
        code = (
            "import sys, pathlib as p; from gitops_hook.sync.runner import Runner, Task\n"
            "script = p.Path(sys.argv[1]); import os\n"
            "Runner(script, script.parent, os.environ).run(Task('site', 1), script.with_name('1.log'), 600)"
        )
        return subprocess.Popen(
            [sys.executable, "-c", code, bench.script], env={**ENVIRON, "PYTHONPATH": os.fspath(SOURCE)}
        )

    def test_a_daemon_killed_outright_leaves_no_orphan(self, bench: Bench, fifo: Callable[[], bytes]):
        bench.write("exec 9>$0.fifo; (sleep 20 & sleep 20; echo late >&9) & sleep 60")
        daemon = self.daemon(bench)
        wait_for_sleeps(bench.folder, 3)
        daemon.kill()
        daemon.wait()
        assert fifo() == b""

    def test_a_script_does_not_outlive_a_timeout_that_could_not_end_it(self, bench: Bench, fifo: Callable[[], bytes]):
        # If it is signalled in the moment of its fork, it forgets its child; and a daemon that is dead cannot look after it.
        bench.write("exec 9>$0.fifo; echo $PPID >$0.pid; mv $0.pid $0.started; sleep 5 9>&-; echo late >&9")
        daemon = self.daemon(bench)
        started(bench.folder / "script.started")
        timeout = int((bench.folder / "script.started").read_text())
        daemon.send_signal(signal.SIGSTOP)
        os.kill(timeout, signal.SIGKILL)
        daemon.kill()
        daemon.wait()
        assert fifo() == b""

    def test_terminate_ends_every_run_in_hand(self, bench: Bench, fifo: Callable[[], bytes]):
        bench.write("exec 9>$0.fifo; sleep 60 & sleep 60")
        runner, results = bench.runner(), []
        threads = [
            threading.Thread(
                target=lambda name=name, run=run: results.append(
                    runner.run(Task(name, run), bench.folder / f"{name}.log", 600)
                )
            )
            for run, name in enumerate(("a", "b", "c"))
        ]
        for thread in threads:
            thread.start()
        wait_for_sleeps(bench.folder, 6)
        runner.terminate()
        for thread in threads:
            thread.join(20)
        assert [result.outcome for result in results] == ["interrupted"] * 3
        assert fifo() == b""
        runner.terminate()

    def test_background_processes_do_not_keep_the_run_open(self, bench: Bench):
        began = time.monotonic()
        result = bench.run("setsid sleep 30 & echo $! >$0.pid; echo done")
        assert time.monotonic() - began < 15
        assert (result.outcome, bench.printed()) == ("updated", "done\n")
        os.kill(int((bench.folder / "script.pid").read_text()), signal.SIGKILL)

    def test_endless_output_has_the_same_limit(self, bench: Bench):
        result = bench.run("setsid yes & echo $! >$0.pid; echo done")
        os.kill(int((bench.folder / "script.pid").read_text()), signal.SIGKILL)
        assert result.outcome == "updated"

    @pytest.mark.parametrize(("bound", "own"), [(1000, 744), (300, 150)])
    def test_a_deploy_may_start_fewer_processes_than_the_daemon(self, bench: Bench, monkeypatch, bound: int, own: int):
        monkeypatch.setattr(resource, "getrlimit", lambda kind: (bound, resource.RLIM_INFINITY))
        bench.run("ulimit -u")
        assert bench.printed() == f"{own}\n"

    def test_a_script_that_cannot_be_executed_has_failed_and_says_so(self, bench: Bench):
        result = bench.runner().run(TASK, bench.log, 60)
        assert (result.outcome, result.exit) == ("failed", 127)
        assert "No such file" in bench.printed()

    def test_a_death_by_signal_differs_from_an_exit_status(self, bench: Bench):
        assert bench.run("kill -KILL $$").outcome == "interrupted"

    def test_no_log_to_write_raises_and_leaks_nothing(self, bench: Bench):
        bench.log.mkdir()
        before = descriptors()
        with pytest.raises(IsADirectoryError):
            bench.run("true")
        assert descriptors() == before

    @pytest.mark.parametrize("spare", range(8))
    def test_a_lack_of_descriptors_raises_and_leaks_none(self, bench: Bench, spare: int):
        bench.write("true")
        runner, before = bench.runner(), descriptors()
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(before) + 20, limits[1]))
        fillers = []
        try:
            with suppress(OSError):
                while True:
                    fillers.append(os.dup(0))
            for _ in range(spare):
                os.close(fillers.pop())
            with pytest.raises(OSError, match="Too many open files"):
                runner.run(TASK, bench.log, 60)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            for filler in fillers:
                os.close(filler)
        assert descriptors() == before

    def test_a_lack_of_threads_raises_and_leaks_nothing(self, bench: Bench, monkeypatch: pytest.MonkeyPatch):
        bench.write("true")
        runner, before = bench.runner(), descriptors()
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(BlockingIOError, match="can't start new thread"):
                runner.run(TASK, bench.log, 60)
        assert descriptors() == before


def no_thread(self: threading.Thread) -> None:
    """Raise the error of Thread.start at the limit of processes."""
    raise RuntimeError("can't start new thread")


def descriptors() -> set[int]:
    return {int(entry.name) for entry in Path("/proc/self/fd").iterdir() if entry.exists()}


class TestResultFile:
    @pytest.mark.parametrize(
        ("script", "result"),
        [
            ("", Result("updated", 0)),
            ("printf 'outcome=unchanged\\nbefore=a\\nafter=b\\nmessage=c=d'", Result("unchanged", 0, "a", "b", "c=d")),
            ("printf 'outcome=paused\\nmess'", Result("paused", 0)),
            ("printf 'message=a\\x0coutcome=paused'", Result("updated", 0, "", "", r"a\x0coutcome=paused")),
            ("printf 'message=\\x1b[31m\\xff\\r\\n'", Result("updated", 0, "", "", "\\x1b[31m\ufffd\\r")),
            ("head -c 100000 /dev/urandom", None),
            ("yes message=x | head -c 10000000", Result("updated", 0, "", "", "x")),
            ("printf 'message='; head -c 200000 /dev/zero | tr '\\0' x", Result("updated", 0, "", "", "x" * 1000)),
        ],
    )  # fmt: skip
    def test_it_refines_and_never_breaks(self, bench: Bench, script: str, result: Result | None):
        got = bench.run(f"{{ {script or ':'}; }} >$GITOPS_RESULT")
        assert got == result or (result is None and got.outcome == "updated")
        assert not bench.log.with_suffix(".result").exists()

    @pytest.mark.parametrize("script", [":", "mkdir $GITOPS_RESULT", "mkfifo $GITOPS_RESULT", "ln -s x $GITOPS_RESULT"])
    def test_it_may_be_missing_or_no_file_at_all(self, bench: Bench, script: str):
        assert bench.run(script) == Result("updated", 0)


def kept(log: Path) -> tuple[bytes, int, bytes]:
    """Split a log at its note: the text before, the number of bytes in the note, the text after."""
    head, dropped, tail = re.split(rb"\n\[gitops-hook left out (\d+) bytes here\]\n", log.read_bytes())
    return head, int(dropped), tail


def numbers(start: int, size: int) -> bytes:
    """The part at `start` of a text in which every position is unique."""
    first = start // 16
    text = b"".join(b"%015d\n" % number for number in range(first, (start + size) // 16 + 1))
    return text[start - first * 16 :][:size]


class TestLastLines:
    def test_findings_are_limited_in_number_and_length(self, tmp_path: Path):
        path = tmp_path / "1.log"
        path.write_bytes(b"".join(b"\x1b[31mline %d\x1b[0m\r\n\n" % number for number in range(50)) + b"\xff\x07end")
        assert last_lines(path) == "\n".join([*(f"line {number}" for number in range(41, 50)), "\ufffdend"])
        path.write_text("é" * 100_000)
        assert 0 < len(last_lines(path).encode()) <= 1500
        path.write_text("")
        assert last_lines(path) == last_lines(tmp_path / "none") == ""


class TestBoundedLog:
    @pytest.mark.parametrize("size", [0, 1, HEAD_BYTES + TAIL_BYTES, HEAD_BYTES + 2 * TAIL_BYTES])
    def test_short_output_is_kept_unchanged(self, tmp_path: Path, size: int):
        with BoundedLog(tmp_path / "1.log") as log:
            self.pour(log, size)
        assert (tmp_path / "1.log").read_bytes() == numbers(0, size)

    @pytest.mark.parametrize("rounds", [1, 2, 5])
    def test_head_and_tail_are_exact_and_the_note_counts_what_is_between(self, tmp_path: Path, rounds: int):
        size = HEAD_BYTES + 2 * TAIL_BYTES + 1 + (rounds - 1) * (TAIL_BYTES + 4711)
        with BoundedLog(tmp_path / "1.log") as log:
            self.pour(log, size)
        head, dropped, tail = kept(tmp_path / "1.log")
        assert head == numbers(0, HEAD_BYTES)
        assert len(tail) >= TAIL_BYTES
        assert tail == numbers(size - len(tail), len(tail))
        assert len(head) + dropped + len(tail) == size

    @staticmethod
    def pour(log: BoundedLog, size: int) -> None:
        data = memoryview(numbers(0, size))
        while data:
            data = data[os.write(log.pipe, data[:10_007]) :]

    def test_a_flood_passes_and_stays_bounded(self, bench: Bench):
        self.flood(bench, 64 << 20)

    @pytest.mark.slow
    def test_a_gigabyte_of_output_keeps_disk_and_memory_bounded(self, bench: Bench):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        self.flood(bench, 1 << 30)
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 32 << 10  # in KiB

    def flood(self, bench: Bench, size: int) -> None:
        largest, over = 0, threading.Event()

        def watch() -> None:
            nonlocal largest
            while not over.wait(0.01):
                sizes = []
                for path in bench.folder.glob("1.*"):
                    try:
                        sizes.append(path.stat().st_size)
                    except FileNotFoundError:
                        continue
                largest = max(largest, sum(sizes))

        watcher = threading.Thread(target=watch)
        watcher.start()
        result = bench.run(f"head -c {size} /dev/zero", limit=600)
        over.set()
        watcher.join()
        head, dropped, tail = kept(bench.log)
        assert result.outcome == "updated"
        assert len(head) + dropped + len(tail) == size
        assert largest <= 2 * (HEAD_BYTES + 2 * TAIL_BYTES + (64 << 10))

    @pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
    def test_no_credential_in_a_truncated_url_is_kept(self, tmp_path: Path, size: int):
        text = (
            b"pip install git+https://ada:hidden@host/x\xff\nHTTPS://hidden@host https://host/ssh://git@host:22\nhttps"
        )
        with BoundedLog(tmp_path / "1.log") as log:
            for start in range(0, len(text), size):
                os.write(log.pipe, text[start : start + size])
                # The runner must read each part before the next is written, because a pipe joins adjacent writes.
                while select.select([log._output], [], [], 0)[0]:
                    time.sleep(0.0005)
        kept = (tmp_path / "1.log").read_bytes()
        assert kept == text.replace(b"ada:hidden", b"***").replace(b"hidden", b"***")

    def test_it_is_read_while_it_grows(self, tmp_path: Path):
        with BoundedLog(tmp_path / "1.log") as log:
            os.write(log.pipe, b"first")
            deadline = time.monotonic() + 10
            while (tmp_path / "1.log").read_bytes() != b"first":
                assert time.monotonic() < deadline

    def test_a_full_disk_loses_output_and_keeps_the_script_going(self, bench: Bench, capfd):
        with small_disk(bench.folder / "disk", "1m") as disk:
            fill(disk)
            bench.log = disk / "1.log"
            result = bench.run(f"head -c 10000000 /dev/zero; echo end >{bench.folder}/end; exit 70")
            assert result.exit == 70
            assert (bench.folder / "end").read_text() == "end\n"
        assert "output of a run is lost" in capfd.readouterr().err

    def test_a_disk_too_full_to_drop_the_middle_keeps_the_beginning(self, bench: Bench):
        with small_disk(bench.folder / "disk", "3m") as disk:
            bench.log = disk / "1.log"
            assert bench.run("head -c 10000000 /dev/zero").outcome == "updated"
            assert bench.log.stat().st_size > HEAD_BYTES
            assert [path.name for path in disk.iterdir()] == ["1.log"]


class TestFollowing:
    def follow(self, log: Path, offset: int = 0, size: int = 100_000) -> tuple[bytes, int]:
        """Read everything from `offset` on, with as many calls as necessary."""
        printed = b""
        while True:
            part = read_log(log, offset, size)
            if not part.content:
                return printed, offset
            printed, offset = printed + part.content, part.offset

    def test_a_log_that_loses_its_middle_is_followed_without_repeated_bytes(self, tmp_path: Path):
        lines = [b"%07d\n" % number for number in range((HEAD_BYTES + 8 * TAIL_BYTES) // 8)]
        log, seen, offset, taken = tmp_path / "1.log", b"", 0, 0
        with BoundedLog(log) as output:
            for start in range(0, len(lines), 20_000):
                chunk = b"".join(lines[start : start + 20_000])
                while chunk:
                    chunk = chunk[os.write(output.pipe, chunk) :]
                taken += 1
                more, offset = self.follow(log, offset)
                seen += more
        more, offset = self.follow(log, offset)
        seen += more
        assert offset == sum(map(len, lines))
        assert re.sub(rb"\n\[gitops-hook left out \d+ bytes here\]\n", b"", seen).split(b"\n")[-9:] == [
            *(line.strip() for line in lines[-8:]),
            b"",
        ]
        whole = [int(line) for line in seen.split(b"\n") if re.fullmatch(rb"\d{7}", line)]
        assert whole == sorted(set(whole))

    def test_a_late_follower_receives_missed_output_and_continues(self, tmp_path: Path):
        log = tmp_path / "1.log"
        line = b"x" * 99 + b"\n"
        with BoundedLog(log) as output:
            for _ in range(50_000):
                os.write(output.pipe, line)
        printed, offset = self.follow(log)
        assert printed == log.read_bytes()
        assert offset == 50_000 * len(line)
        late, end = self.follow(log, HEAD_BYTES + 10)
        assert late == log.read_bytes()[HEAD_BYTES:]
        assert end == offset
        assert self.follow(log, offset - 100) == (line, offset)
        assert self.follow(log, offset + 10**15) == (b"", offset + 10**15)

    def test_output_that_looks_like_the_note_is_read_to_its_end_all_the_same(self, tmp_path: Path):
        log = tmp_path / "1.log"
        content = b"x" * HEAD_BYTES + b"\n[gitops-hook left out 5 bytes here]\nthe end\n"
        log.write_bytes(content)
        assert self.follow(log)[0] == content

    def test_a_missing_log_is_empty(self, tmp_path: Path):
        assert read_log(tmp_path / "none", 7, 100) == (b"", 7)
