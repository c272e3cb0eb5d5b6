"""The metrics: format, counts, states of repositories, and a scrape by a real Prometheus."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from harness import SECRET, Daemon, push
from scratch import Upstream, git
from webtest import TestApp

from gitops_hook.dashboard.app import Dashboard
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Claim, Delivery
from gitops_hook.observers.metrics import Metrics
from gitops_hook.observers.prometheus import CONTENT_TYPE, Counter, Histogram, Sample, format_family
from gitops_hook.outcomes import BY_NAME
from gitops_hook.receiver.app import RESULTS, WebhookApp
from gitops_hook.secrets import Secrets
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.runner import Task

NOW = 1_700_000_000.0


def values(text: str) -> dict[str, float]:
    """The samples of an exposition, by name and labels."""
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    assert len({name for name, _, _ in lines}) == len(lines), "duplicate sample"
    return {name: float(value) for name, _, value in lines}


def formatted(samples: list[Sample], name: str = "x", kind: str = "gauge") -> str:
    return "".join(format_family(name, kind, "X.", samples))


class TestFormat:
    def test_label_values_are_escaped(self):
        hostile = 'a\\b"c\nd'
        assert formatted([Sample(1), Sample(0.5, {"name": hostile, "other": "é"})]) == (
            '# HELP x X.\n# TYPE x gauge\nx 1\nx{name="a\\\\b\\"c\\nd",other="é"} 0.5\n'
        )

    def test_numbers_keep_their_precision(self):
        lines = formatted([Sample(value) for value in (0, 1e15, 1700000000.25, 1e-7, True)]).splitlines()[2:]
        assert lines == ["x 0", "x 1000000000000000", "x 1700000000.25", "x 1e-07", "x 1"]

    def test_threads_share_a_counter_of_declared_kinds(self):
        counter = Counter(("result", "reason"), [("yes", "a"), ("no", "b")])
        threads = [threading.Thread(target=lambda: [counter.add("yes", "a") for _ in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        with pytest.raises(KeyError):
            counter.add("yes", "b")
        assert values(formatted(counter.samples())) == {
            'x{result="yes",reason="a"}': 8000,
            'x{result="no",reason="b"}': 0,
        }

    def test_the_buckets_of_a_histogram_are_cumulative(self):
        histogram = Histogram((0.5, 1, 10))
        for value in (0, 0.5, 0.75, 11, 1000):
            histogram.observe(value)
        assert list(values(formatted(histogram.samples())).items()) == [
            ('x_bucket{le="0.5"}', 2),
            ('x_bucket{le="1"}', 3),
            ('x_bucket{le="10"}', 3),
            ('x_bucket{le="+Inf"}', 5),
            ("x_sum", 1012.25),
            ("x_count", 5),
        ]


class Host:
    """A journal, checkouts of a real upstream, and what is measured of them at `NOW`."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.root.mkdir()
        self.upstream = Upstream(folder / "forge")
        self.journal = Journal(folder / "state")
        self.checkouts = Checkouts(self.root)
        self.metrics = Metrics(self.journal, self.checkouts, RESULTS, clock=lambda: NOW)

    def record(self, repository: str = "acme/site", ago: float = 0) -> None:
        self.journal.record(Delivery("g", "push", NOW - ago, repository, "refs/heads/main"))

    def begin(self, repository: str = "acme/site", ago: float = 0) -> Claim:
        claim = self.journal.start(repository, "push")
        assert claim
        claim = claim._replace(run=claim.run._replace(started=NOW - ago))
        self.metrics.began(claim, Task(repository, claim.run.id))
        return claim

    def end(self, claim: Claim, outcome: str, ago: float = 0, *, settled: bool = True) -> None:
        run = claim.run._replace(outcome=outcome, ended=NOW - ago)
        self.journal.finish(run, settled=settled)
        self.metrics.ended(run, claim, Task(run.repository, run.id))

    def values(self, prefix: str = "") -> dict[str, float]:
        shown = values(self.metrics.exposition())
        return {name[len(prefix) :]: value for name, value in shown.items() if name.startswith(prefix)}


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.journal.close()


def test_the_process_metrics_are_those_of_proc(host: Host):
    shown = host.values()
    assert abs(shown["process_start_time_seconds"] - time.time()) < 86400 * 365
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    assert 0.5 < shown["process_resident_memory_bytes"] / (pages * os.sysconf("SC_PAGESIZE")) < 2
    assert shown["process_threads"] >= 1 and shown["process_cpu_seconds_total"] > 0
    with Path(os.devnull).open():
        assert host.values()["process_open_fds"] == shown["process_open_fds"] + 1


class TestCounts:
    def test_each_delivery_is_timed_once_for_any_number_of_runs(self, host: Host):
        host.record(ago=100)
        host.end(host.begin(ago=90), "unreachable", ago=80, settled=False)
        host.record(ago=30)
        host.end(host.begin(ago=20), "updated", ago=10)
        shown = host.values("gitops_hook_")
        assert (shown["delivery_queued_seconds_count"], shown["delivery_queued_seconds_sum"]) == (2, 10 + 10)
        assert (shown["push_to_live_seconds_count"], shown["push_to_live_seconds_sum"]) == (2, 90 + 20)
        assert (shown["run_duration_seconds_count"], shown["run_duration_seconds_sum"]) == (2, 10 + 10)
        assert (shown['runs_total{outcome="unreachable"}'], shown['runs_total{outcome="updated"}']) == (1, 1)

    def test_a_failed_run_is_not_live(self, host: Host):
        host.record()
        host.end(host.begin(), "deploy-failed")
        assert host.values()["gitops_hook_push_to_live_seconds_count"] == 0

    def test_every_outcome_starts_at_zero(self, host: Host):
        assert set(host.values("gitops_hook_runs_total").values()) == {0}
        for outcome in BY_NAME:
            host.end(host.begin(), outcome)
        assert set(host.values("gitops_hook_runs_total").values()) == {1}

    def test_running_runs_and_pending_deliveries(self, host: Host):
        host.record()
        host.record("acme/other")
        claim = host.begin()
        assert (host.values()["gitops_hook_runs_in_hand"], host.values()["gitops_hook_deliveries_owed"]) == (1, 2)
        host.end(claim, "updated")
        assert (host.values()["gitops_hook_runs_in_hand"], host.values()["gitops_hook_deliveries_owed"]) == (0, 1)

    def test_a_clock_that_was_set_back_makes_no_negative_duration(self, host: Host):
        host.record(ago=-50)
        host.end(host.begin(ago=10), "updated", ago=20)
        assert min(host.values("gitops_hook_").values()) >= 0


class TestRepositories:
    def test_the_state_of_each_repository(self, host: Host):
        host.upstream.checkout(host.root)
        Upstream(host.root.parent / "forge", "acme/new").checkout(host.root)
        host.end(host.begin(ago=70), "updated", ago=60)
        host.end(host.begin(ago=10), "deploy-failed", ago=5)
        shown = host.values("gitops_hook_repository_")
        assert shown.pop('unconfirmed_seconds{repository="acme/site"}') == 60
        assert shown.pop('last_success_timestamp_seconds{repository="acme/site"}') == NOW - 60
        assert shown.pop('last_outcome{repository="acme/site",outcome="deploy-failed"}') == 1
        assert shown == {'out_of_sync{repository="acme/site"}': 1, 'out_of_sync{repository="acme/new"}': 1}

    def test_a_running_run_keeps_the_last_outcome(self, host: Host):
        host.upstream.checkout(host.root)
        host.end(host.begin(), "unreachable")
        host.begin()
        assert host.values()['gitops_hook_repository_last_outcome{repository="acme/site",outcome="unreachable"}'] == 1

    def test_out_of_sync_compares_the_refs(self, host: Host):
        checkout = host.upstream.checkout(host.root)

        def differ() -> float | None:
            return host.values().get('gitops_hook_repository_out_of_sync{repository="acme/site"}')

        assert differ() == 1  # nothing was deployed yet; upstream is known from the packed refs of the clone
        git("update-ref", "refs/gitops/deployed", "HEAD", cwd=checkout)
        assert differ() == 0
        host.upstream.commit({"a": "b"})
        git("fetch", "--quiet", cwd=checkout)
        assert differ() == 1
        git("update-ref", "refs/gitops/deployed", "origin/main", cwd=checkout)
        git("pack-refs", "--all", "--prune", cwd=checkout)
        assert differ() == 0
        git("config", "gitops.branch", "gone", cwd=checkout)
        assert differ() is None

    def test_a_linked_worktree_has_a_deployed_commit_of_its_own(self, host: Host):
        main = host.upstream.checkout(host.root.parent, nested=False)
        (host.root / "acme").mkdir()
        git("worktree", "add", "--quiet", "--detach", host.root / "acme/site", cwd=main)
        name = 'gitops_hook_repository_out_of_sync{repository="acme/site"}'
        git("update-ref", "refs/gitops/deployed", "HEAD", cwd=main)
        assert host.values()[name] == 1
        git("update-ref", "refs/worktree/gitops/deployed", "HEAD", cwd=host.root / "acme/site")
        assert host.values()[name] == 0

    def test_only_a_checkout_or_a_pending_delivery_makes_a_label(self, host: Host):
        host.end(host.begin("acme/gone"), "missing")
        host.record("acme/cloning")
        host.end(host.begin("acme/cloning"), "unreachable", settled=False)
        shown = host.values("gitops_hook_repository_")
        assert shown == {'last_outcome{repository="acme/cloning",outcome="unreachable"}': 1}

    def test_without_a_readable_journal_the_other_metrics_are_served(self, host: Host, tmp_path: Path):
        host.upstream.checkout(host.root)
        host.journal.close()
        (tmp_path / "state/journal.db").write_bytes(b"noise" * 1000)
        shown = host.values()
        assert "gitops_hook_runs_in_hand" in shown and "process_open_fds" in shown
        assert not [name for name in shown if "repository" in name or "owed" in name]

    @pytest.mark.slow
    def test_a_thousand_repositories_with_a_hundred_thousand_runs(self, host: Host, tmp_path: Path):
        import sqlite3

        host.journal.close()
        with closing(sqlite3.connect(tmp_path / "state/journal.db")) as connection:
            connection.executemany(
                "INSERT INTO runs (repository, trigger, started, ended, outcome) VALUES (?, 'push', ?, ?, ?)",
                ((f"acme/r{n % 1000}", NOW, NOW, "unchanged" if n % 3 else "failed") for n in range(100_000)),
            )
            connection.commit()
        host.journal = Journal(tmp_path / "state")
        host.metrics = Metrics(host.journal, host.checkouts, RESULTS)
        for number in range(1000):
            git_folder = host.root / f"acme/r{number}/.git"
            (git_folder / "refs/remotes/origin").mkdir(parents=True)
            (git_folder / "refs/gitops").mkdir()
            (git_folder / "config").write_text("[gitops]\n\tbranch = main\n")
            (git_folder / "refs/remotes/origin/main").write_text("1" * 40 + "\n")
            (git_folder / "refs/gitops/deployed").write_text("1" * 40 + "\n")
        shown = host.values("gitops_hook_repository_")  # git reads each config once; only then is it known
        began = time.perf_counter()
        again = host.values("gitops_hook_repository_")
        print(f"{time.perf_counter() - began:.3f} s")
        assert len(shown) == len(again) == 4000


@pytest.fixture
def webhook(host: Host) -> TestApp:
    secrets = Secrets({"line 1": SECRET.encode()})
    app = WebhookApp(
        lambda: secrets,
        host.checkouts,
        host.journal,
        lambda _: None,
        count=lambda result, reason, peer: host.metrics.answered(result, reason),
    )
    return TestApp(app)


def test_every_answer_is_counted_by_its_result(host: Host, webhook: TestApp, tmp_path: Path):
    from harness import NOBODY, WEBHOOK, headers

    host.upstream.checkout(host.root)

    def deliver(payload: object, event: str = "push", status: int = 200, **more: str) -> None:
        body = json.dumps(payload).encode()
        webhook.post(WEBHOOK, body, {**headers(body, event), **more}, status=status)

    deliver(push("acme/site"), status=202)
    names = {"repository": {"full_name": "acme/new"}, "changes": {"repository": {"name": {"from": "site"}}}}
    deliver({"action": "renamed", **names}, "repository", status=202)
    deliver({"zen": ""}, "ping")
    deliver(push("acme/site"), "issues")
    deliver(push("acme/nothing-here"))
    deliver(push("acme/site", NOBODY))
    deliver(push("acme/site", ref="refs/heads/feature"))
    deliver(push("acme/site", ref=7))
    deliver("not an object", status=400)
    deliver(push("acme/site"), status=401, **{"X-Hub-Signature-256": "sha256=" + "0" * 64})
    deliver(push("acme/site"), status=415, **{"Content-Type": "text/plain"})
    webhook.get("/wp-login.php", status=404)
    webhook.get(WEBHOOK, status=405)
    webhook.request(WEBHOOK, method="POST", status=411)
    webhook.get("/healthz")
    host.journal.close()
    deliver(push("acme/site"), status=503)
    shown = {
        tuple(re.findall('"(.*?)"', name)): value for name, value in host.values("gitops_hook_deliveries_total").items()
    }
    assert set(shown) == set(RESULTS)
    assert {name for name, count in shown.items() if not count} == {
        ("ignored", "nothing"), ("ignored", "name"), ("refused", "late"), ("refused", "size"), ("failed", "checkouts"), ("failed", "fault"),
    }  # fmt: skip
    assert set(shown.values()) == {0, 1}


def test_the_private_page_serves_the_metrics(host: Host):
    page = TestApp(
        Dashboard(host.journal, host.checkouts, metrics=lambda: (CONTENT_TYPE, host.metrics.exposition())),
        extra_environ={"HTTP_HOST": "127.0.0.1"},
    )
    answer = page.get("/metrics")
    assert answer.headers["Content-Type"] == CONTENT_TYPE
    assert "gitops_hook_build_info{" in answer.text
    page.post("/metrics", status=405)
    page.get("/metrics", extra_environ={"HTTP_HOST": "evil.example"}, status=421)


# -- a real daemon's real answer -----------------------------------------------------------------------------------


@pytest.fixture
def served(tmp_path: Path, start_daemon) -> Iterator[str]:
    """The metrics URL of a daemon after a push, an unsigned request and a failed deploy."""
    daemon: Daemon = start_daemon(GITOPS_DASHBOARD_LISTEN="127.0.0.1:0")
    port = int(daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1])
    for name, deploy in (("acme/site", "true"), ("acme/broken", "false")):
        upstream = Upstream(tmp_path / "forge", name)
        upstream.checkout(daemon.root, deploy=deploy)
        daemon.deliver(push(name, upstream.commit({"a": "b"})))
        daemon.wait_for(f"run .* repository={name} .* outcome=")
    daemon.deliver(push("acme/site"), secret="wrong")
    yield f"127.0.0.1:{port}"


def test_promtool_accepts_the_metrics_of_a_daemon(served: str):
    if not shutil.which("promtool"):
        pytest.skip("no promtool on this machine")
    with urllib.request.urlopen(f"http://{served}/metrics", timeout=30) as answer:
        text = answer.read()
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def test_a_real_prometheus_scrapes_it(served: str, tmp_path: Path):
    if not shutil.which("prometheus"):
        pytest.skip("no prometheus on this machine")
    config = tmp_path / "prometheus.yml"
    job = {"job_name": "gitops-hook", "scrape_interval": "200ms", "static_configs": [{"targets": [served]}]}
    config.write_text(json.dumps({"scrape_configs": [job]}))  # JSON is YAML
    with prometheus(config, tmp_path) as address:

        def ask(query: str) -> list[tuple[dict[str, str], float]]:
            """The answer to a query, once there is one."""
            deadline = time.monotonic() + 60
            url = f"http://{address}/api/v1/query?query={urllib.request.quote(query)}"  # type: ignore[attr-defined]
            while True:
                with urllib.request.urlopen(url, timeout=30) as answer:
                    found = json.load(answer)["data"]["result"]
                if found:
                    return [(sample["metric"], float(sample["value"][1])) for sample in found]
                assert time.monotonic() < deadline, f"no answer to {query}"
                time.sleep(0.05)

        assert ask('gitops_hook_deliveries_total{result="accepted"}')[0][1] == 2
        assert ask('gitops_hook_deliveries_total{reason="signature"}')[0][1] == 1
        assert ask('gitops_hook_repository_last_outcome{repository="acme/broken"}')[0][0]["outcome"] == "deploy-failed"
        assert {sample["repository"]: value for sample, value in ask("gitops_hook_repository_out_of_sync")} == {
            "acme/site": 0,
            "acme/broken": 1,
        }
        assert ask("histogram_quantile(0.5, gitops_hook_push_to_live_seconds_bucket)")[0][1] > 0
        assert ask('up{job="gitops-hook"}')[0][1] == 1


class prometheus:
    """A Prometheus of this test's own, on a port that was free; gives its address once it answers."""

    def __init__(self, config: Path, folder: Path) -> None:
        self._command = [
            "prometheus",
            f"--config.file={config}",
            f"--storage.tsdb.path={folder / 'tsdb'}",
            "--web.listen-address=127.0.0.1:0",
            "--log.level=info",
        ]
        self._log = folder / "prometheus.log"

    def __enter__(self) -> str:
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                said = self._log.read_text()
                listens = re.search(r'msg="Listening on" address=(127\.0\.0\.1:\d+)', said)
                if listens and "Server is ready" in said:
                    return listens[1]
                assert self._process.poll() is None and time.monotonic() < deadline, said
                time.sleep(0.05)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(30)
