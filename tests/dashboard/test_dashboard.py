"""The private application: what it shows, to whom, and that it changes nothing."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import time
from html import unescape
from pathlib import Path
from urllib.request import urlopen

import generated
import pytest
from harness import SECRET, push
from scratch import Upstream, git
from webtest import TestApp

from gitops_hook.dashboard.app import Dashboard
from gitops_hook.dashboard.links import commit_url
from gitops_hook.dashboard.rejections import Rejections
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Commit, Delivery
from gitops_hook.sync.checkouts import Checkouts

HOSTILE = "</pre><script>alert(1)</script>\x1b[31m\ud800"


@pytest.fixture
def journal(tmp_path: Path):
    journal = Journal(tmp_path / "state")
    yield journal
    journal.close()


@pytest.fixture
def page(tmp_path: Path, journal: Journal) -> TestApp:
    (tmp_path / "root").mkdir()
    return TestApp(Dashboard(journal, Checkouts(tmp_path / "root")), extra_environ={"HTTP_HOST": "127.0.0.1:8788"})


def finished(journal: Journal, repository: str, outcome: str, **more: object) -> int:
    """A run that has ended so, which served one delivery called as its outcome."""
    journal.record(Delivery(outcome, "push", time.time(), repository, "refs/heads/main"))
    claim = journal.start(repository, "push")
    assert claim
    journal.finish(claim.run._replace(ended=time.time(), outcome=outcome, **more), settled=True)
    return claim.run.id


def within(tag: str, text: str) -> str:
    """Return the content of the first element with this tag."""
    found = re.search(rf"<{tag}[ >].*?</{tag}>", text, re.DOTALL)
    assert found, f"no <{tag}> in {text}"
    return found[0]


def test_the_page_shows_problems_first_with_their_fix(page, journal, tmp_path):
    (tmp_path / "root/acme/fine/.git").mkdir(parents=True)
    finished(journal, "acme/fine", "updated", after="a" * 40)
    run = finished(
        journal, "acme/stuck", "dirty", message="acme/stuck: commit or stash <README>", fix="git -C '/x' stash"
    )
    journal.log_path(run).write_text("Aborting \x1b[31m<now>\ndirty: acme/stuck: commit or stash <README>\n")
    shown = page.get("/").text
    needs = within("section", shown)
    assert "acme/stuck" in needs
    assert "<p>commit or stash &lt;README&gt;</p>" in needs
    assert '<code class="command">git -C &#x27;/x&#x27; stash</code>' in needs
    assert '<pre class="tail">Aborting <span class="s31">&lt;now&gt;</span></pre>' in needs
    assert f'href="/runs/{run}"' in needs
    assert "acme/fine" not in needs
    table = within("table", shown)
    assert table.index("acme/stuck") < table.index("acme/fine")
    assert "action needed" in table
    assert "in sync" in table
    assert "aaaaaaaa<" in table
    assert "<title>1 of 2 needs action" in shown
    assert ">1 of 2 needs action</h1>" in shown


def test_the_overview_has_health_and_counts(page, journal):
    finished(journal, "acme/fine", "updated")
    journal.record(Delivery("g", "push", 1.0, "acme/other", "refs/heads/main"))
    shown = page.get("/").text
    assert "Daemon running" in shown
    assert "0 runs now" in shown
    journal.start("acme/other", "push")
    assert "1 run now" in page.get("/").text
    assert re.search(r"<b>1</b> running", page.get("/").text)
    journal.fault = "no space <left>"
    assert "The journal cannot be written: no space &lt;left&gt;" in page.get("/").text


def rows(text: str) -> list[str]:
    return re.findall(r'<tr [^>]*><th scope="row"><a href="/repositories/([^"]+)"', text)


def test_rows_are_searched_sorted_and_filtered_by_state(page, journal, tmp_path):
    (tmp_path / "root/acme/shop/.git").mkdir(parents=True)
    run = finished(journal, "acme/shop", "updated", after="b" * 40)
    journal.save_commits(run, [Commit("b" * 40, "Grace Hopper", "Fix the Total", 9.0)], 1)
    run = finished(journal, "acme/blog", "dirty", after="a" * 40)
    journal.save_commits(run, [Commit("a" * 40, "Ada", "Say hello", 10.0)], 1)
    finished(journal, "infra/dns", "updated")
    assert rows(page.get("/").text) == ["acme/blog", "acme/shop", "infra/dns"]
    assert rows(page.get("/?sort=-repository").text) == ["infra/dns", "acme/shop", "acme/blog"]
    assert rows(page.get("/?sort=commit").text) == ["infra/dns", "acme/shop", "acme/blog"]
    assert rows(page.get("/?sort=-run").text)[0] == "infra/dns"
    assert rows(page.get("/?sort=-confirmed").text)[-1] == "acme/blog"
    assert rows(page.get("/?sort=nonsense").text)[0] == "acme/blog"
    assert rows(page.get("/?state=in+sync&sort=repository").text) == ["acme/shop", "infra/dns"]
    for words, found in (("SHOP", "acme/shop"), ("hopper+total", "acme/shop"), ("aaaa", "acme/blog")):
        assert rows(page.get(f"/?q={words}").text) == [found]
    nothing = page.get("/", {"q": "<none>", "state": "paused"}).text
    assert "“&lt;none&gt;” and “paused”" in nothing
    assert 'value="&lt;none&gt;"' in nothing
    sorted_by = page.get("/?q=acme&sort=repository").text
    assert 'class="repository" aria-sort="ascending"><a href="/?q=acme&amp;sort=-repository"' in sorted_by


@pytest.mark.parametrize("moment", [999_999_999_999.0, 1e300, -1e12])
def test_a_date_after_the_year_9999_breaks_no_response(page, journal, moment):
    run = finished(journal, "acme/site", "updated", before="b" * 40, after="a" * 40)
    journal.save_commits(run, [Commit("a" * 40, "Ada", "Say hello", moment)], 1)
    year = "9999-12-31" if moment > 0 else "1970-01-01"
    for path in ("/repositories/acme/site", f"/runs/{run}"):
        assert year in page.get(path).text
    for path in ("/api/repositories", "/api/repositories/acme/site", f"/api/runs/{run}"):
        assert f'"{year}T' in page.get(path).text


def test_a_search_for_a_guid_leads_to_its_delivery(page, journal):
    journal.record(Delivery("a/b c", "push", time.time(), "acme/site", "refs/heads/main"))
    answer = page.get("/", {"q": "a/b c"}, status=303)
    assert answer.headers["Location"].endswith("/deliveries/a%2Fb%20c")
    assert "queued" in answer.follow().text


def test_the_history_has_a_text_alternative(page, journal):
    for outcome in ("updated", "dirty", "updated"):
        finished(journal, "acme/site", outcome)
    svg = within("svg", page.get("/").text)
    assert "<title>Last 3 runs: 2 updated, 1 dirty</title>" in svg
    (good,) = re.findall(r'<path class="good" d="([^"]*)"', svg)
    (bad,) = re.findall(r'<path class="bad" d="([^"]*)"', svg)
    assert re.fullmatch(r"M29 0v-\d+M27 0v-\d+", good)
    assert re.fullmatch(r"M28 0v-\d+M28 2v3", bad)  # with a mark, for readers who cannot distinguish colors


def test_an_empty_page_says_how_to_begin(page):
    assert "gitops-hook add OWNER/NAME" in page.get("/").text


def test_a_run_page_escapes_its_log(page, journal):
    run = finished(journal, "acme/site", "deploy-failed", message=HOSTILE[:31], exit=70)
    journal.log_path(run).write_bytes(HOSTILE[:-1].encode() + b"red\xff\n")
    answer = page.get(f"/runs/{run}")
    assert "deploy-failed" in answer.text
    assert "<script>alert" not in answer.text
    assert within("pre", answer.text).endswith(
        '>&lt;/pre&gt;&lt;script&gt;alert(1)&lt;/script&gt;<span class="s31">red\ufffd\n</span></pre>'
    )
    assert page.get(f"/runs/{run}/log").body == HOSTILE[:-1].encode() + "red\ufffd\n".encode()


@pytest.mark.parametrize("path", ["/", "/runs/1", "/nothing"])
def test_the_page_may_load_and_run_nothing_but_its_own(page, journal, path):
    finished(journal, "acme/site", "updated")
    answer = page.get(path, headers={"Accept": "text/html"}, status="*")
    policy = answer.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for tag, directive in (("style", "style-src"), ("script", "script-src")):
        text = re.findall(rf"<{tag}>(.*?)</{tag}>", answer.text, re.DOTALL)
        assert len(text) == 1
        digest = base64.b64encode(hashlib.sha256(text[0].encode()).digest()).decode()
        assert f"{directive} 'sha256-{digest}'" in policy
    assert not re.search(r"""\s(style|on\w+)=|(src|href)=["']?(?:https?:)?//""", answer.text.replace(text[0], ""))
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"


def test_the_time_line_of_a_run_from_its_delivery_to_its_end(page, journal):
    journal.record(Delivery("g", "push", 1000.0, "acme/site", "refs/heads/main", pusher="ada"))
    claim = journal.start("acme/site", "push")
    ended = claim.run._replace(
        started=1000.25,
        fetched=1001.0,
        deployed=1003.5,
        healthy=1004.0,
        ended=1004.02,
        outcome="updated",
        after="a" * 40,
    )
    journal.finish(ended, settled=True)
    journal._call(lambda connection: connection.execute("UPDATE runs SET started = 1000.25"))
    shown = page.get("/runs/1").text
    line = within("ol", shown)
    assert re.findall(r"<b>(\w+)</b>", line) == ["Received", "Queued", "Fetched", "Deployed", "Healthy", "Done"]
    assert re.findall(r">after ([^<]+)<", line) == ["250 ms", "750 ms", "2.5 s", "500 ms", "20 ms"]
    assert "4.0 s in total" in shown
    assert re.findall(r'<rect class="(\w+)" x="([\d.]+)"', shown)[2] == ("deployed", "248.8")
    served = within("table", shown)
    assert '<a href="/deliveries/g"><code>g</code></a>' in served
    assert "ada" in served


def test_a_run_without_a_delivery_and_without_times_is_shown(page, journal):
    run = finished(journal, "acme/site", "unchanged")
    claim = journal.start("acme/other", "sweep")
    journal.finish(claim.run._replace(ended=claim.run.started, outcome="unchanged"), settled=True)
    shown = page.get(f"/runs/{claim.run.id}").text
    assert re.findall(r"<b>(\w+)</b>", within("ol", shown)) == ["Started", "Done"]
    assert "Deliveries it served" not in shown
    assert page.get(f"/runs/{run}/log").text == ""


def test_many_deliveries_are_shown_partly_and_counted(page, journal):
    for number in range(120):
        journal.record(Delivery(str(number), "push", time.time(), "acme/site", "refs/heads/main"))
    claim = journal.start("acme/site", "push")
    shown = page.get(f"/runs/{claim.run.id}").text
    assert shown.count('<a href="/deliveries/') == 100
    assert "And 20 more." in shown
    answer = page.get(f"/api/runs/{claim.run.id}").json
    assert (answer["served"], len(answer["deliveries"])) == (120, 100)


def test_a_repository_page_shows_settings_and_the_commits_of_each_run(page, journal, tmp_path):
    Upstream(tmp_path / "forge").checkout(tmp_path / "root", deploy="echo '<b>'", branch="main")
    commits = [Commit(f"{number:040}", "Ada <a@b>", f"Say <hello> {number}", 9.0) for number in range(50)]
    for brought in (0, 1, 3, 1000):
        run = finished(journal, "acme/site", "updated", after=commits[0].id)
        journal.save_commits(run, commits[: max(brought, 1)], brought)
    shown = page.get("/repositories/ACME/site").text
    value = '<td data-label="Value"><code>echo &#x27;&lt;b&gt;&#x27;</code></td>'
    assert f"<code>gitops.deploy</code></th>{value}" in shown
    assert f'<td data-label="Source">{tmp_path}/root/acme/site/.git/config</td>' in shown
    assert "the daemon&#x27;s GITOPS_SYNC_TIMEOUT" in shown
    assert shown.count('<details id="r') == 2
    assert '<span class="subject">Say &lt;hello&gt; 0</span>' in within("summary", shown)
    assert '<span class="quiet">3 commits</span></summary>' in shown
    assert '<span class="quiet">1000 or more commits</span></summary>' in shown
    assert "And 950 or more before these." in shown
    for number in range(60):
        last = finished(journal, "acme/site", "updated", message=str(number))
    first_page = page.get("/repositories/acme/site")
    assert f'<a href="/runs/{last}">' in first_page.text
    assert '<a href="/runs/3">' not in first_page.text
    older = page.get(re.search(r'href="(\S+\?before=\d+)"', first_page.text)[1]).text
    assert '<a href="/runs/3">' in older
    assert "?before=" not in older


def test_a_repository_that_never_ran_or_is_gone_says_so(page, journal, tmp_path):
    Upstream(tmp_path / "forge", "acme/new").checkout(tmp_path / "root")
    assert "gitops-hook sync acme/new" in page.get("/repositories/acme/new").text
    finished(journal, "acme/gone", "missing", message="acme/gone: there is no checkout")
    assert "no checkout of this repository" in page.get("/repositories/acme/gone").text


def test_the_state_of_a_delivery(page, journal):
    def shown_delivery(guid: str) -> str:
        return re.sub("<[^>]*>", "", within("section", page.get(f"/deliveries/{guid}").text))

    journal.record(Delivery("g", "push", time.time() - 1, "acme/site", "refs/heads/main", "", "a" * 40, "ada"))
    assert "ada pushed aaaaaaaaaa to refs/heads/main." in shown_delivery("g")
    assert "queued" in shown_delivery("g")
    claim = journal.start("acme/site", "push")
    assert f"running run {claim.run.id}, since 0 s." in shown_delivery("g")
    ended = claim.run._replace(ended=claim.run.started + 2, outcome="unreachable", message="acme/site: no answer")
    journal.finish(ended, settled=False)
    assert re.search(
        r"unreachable run 1 ended 3\.\d s after the push\. It will be retried\.no answer", shown_delivery("g")
    )
    again = journal.start("acme/site", "retry")
    journal.finish(again.run._replace(ended=time.time(), outcome="updated", after="a" * 40), settled=True)
    journal.save_commits(again.run.id, [Commit("a" * 40, "Ada", "Say hello", 9.0)], 1)
    assert re.search(r"updated run 2 ended 1\.\d s after the push\.aaaaaaaaaa Say hello", shown_delivery("g"))
    journal._call(lambda connection: connection.execute("DELETE FROM runs"))
    assert "The run is no longer in the journal." in shown_delivery("g")


def test_the_log_of_a_running_run_is_appended(page, journal):
    claim = journal.start("acme/site", "push")
    log, path = journal.log_path(claim.run.id), f"/runs/{claim.run.id}"
    log.write_bytes(b"\x1b[31mred \xe2\x82")
    shown = page.get(path).text
    assert "New output appears here" in shown
    follow = unescape(re.search(r'data-next="([^"]+)"', shown)[1])
    assert follow == f"{path}/output?offset=9&pen=31"
    with log.open("ab") as file:
        file.write(b"\xac more\x1b[")
    more = page.get(follow).json
    assert more == {"html": '<span class="s31">€ more</span>', "next": f"{path}/output?offset=17&pen=31"}
    assert page.get(more["next"]).json == {"html": "", "next": more["next"]}
    with log.open("ab") as file:
        file.write(b"0mend")
    journal.finish(claim.run._replace(ended=1.0, outcome="updated"), settled=True)
    last = page.get(more["next"]).json
    assert last["html"] == "end"
    assert page.get(last["next"]).json == {"html": "", "next": None}
    assert "data-next" not in page.get(path).text


def test_a_partial_line_of_a_killed_run_ends_its_log(page, journal):
    claim = journal.start("acme/site", "push")
    journal.log_path(claim.run.id).write_bytes(b"at work \xe2\x82")
    follow = f"/runs/{claim.run.id}/output?offset=0"
    journal.finish(claim.run._replace(ended=1.0, outcome="interrupted"), settled=False)
    shown = []
    while follow and len(shown) < 9:
        part = page.get(follow).json
        shown.append(part["html"])
        follow = part["next"]
    assert shown == ["at work ", "\ufffd", ""]


def test_a_client_with_the_current_version_receives_304(page, journal):
    run = finished(journal, "acme/site", "updated", after="a" * 40)
    for path in ("/", f"/runs/{run}", "/api/repositories", f"/api/runs/{run}", "/api/deliveries/updated"):
        first = page.get(path)
        tag = first.headers["ETag"]
        assert first.headers["Cache-Control"] == "private, no-cache"
        for sent in (tag, f'"other", W/{tag}', "*"):
            again = page.get(path, headers={"If-None-Match": sent}, status=304)
            assert (again.body, again.headers["ETag"]) == (b"", tag)
            assert "Content-Type" not in again.headers
        page.get(path, headers={"If-None-Match": '"other"'}, status=200)
    tag = page.get("/api/runs").headers["ETag"]
    finished(journal, "acme/site", "updated")
    page.get("/api/runs", headers={"If-None-Match": tag}, status=200)
    assert "ETag" not in page.get("/nothing", status=404).headers


def test_errors_are_html_for_browsers_and_json_for_programs(page):
    refused = page.get("/runs/77", headers={"Accept": "text/html,*/*;q=0.8"}, status=404)
    assert refused.content_type == "text/html"
    assert "No such run." in refused.text
    assert page.get("/api/runs/77", headers={"Accept": "text/html"}, status=404).json == {"reason": "no such run"}


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/nothing", 404),
        ("/api/runs/77", 404),
        ("/api/runs/77/log", 404),
        ("/runs/77", 404),
        ("/api/repositories/acme/none", 404),
        ("/api/repositories/../../etc", 404),
        ("/api/repositories/../outside", 404),
        ("/api/deliveries/none", 404),
        ("/api/runs?limit=0", 400),
        ("/api/runs?limit=99999999999999999999", 400),
        ("/api/runs?limit=00000000199999999", 400),
        ("/api/runs?limit=x", 400),
        ("/api/runs?before=-1", 400),
        ("/api/repositories?limit=1001", 400),
        ("/?" + "&".join(f"a{number}=1" for number in range(99)), 400),
        ("/repositories/acme/none", 404),
        ("/deliveries/none", 404),
        ("/runs/77/output", 404),
        ("/deliveries/%ff%00", 404),
    ],
)
def test_a_missing_page_is_404(page, tmp_path, path, status):
    (tmp_path / "outside/.git").mkdir(parents=True)
    assert page.get(path, status=status).json["reason"]


def test_an_invalid_offset_is_400(page, journal):
    run = finished(journal, "acme/site", "updated")
    page.get(f"/api/runs/{run}/log?offset=-1", status=400)
    page.get(f"/runs/{run}/output?offset=x", status=400)
    assert page.get(f"/runs/{run}/output?offset=7&pen=%1b[31m;;x").json == {"html": "", "next": None}
    assert page.get(f"/api/runs/{run}/log?offset=999").json["text"] == ""  # pruned, or not there yet


def test_a_refresh_sends_only_the_rows_that_changed(page, journal):
    for name in ("acme/one", "acme/two"):
        finished(journal, name, "updated")
    keys = re.findall("data-key=([^>]+)>", page.get("/").text)
    known = ".".join(keys)
    first = page.get("/", {"known": known})
    assert not rows(first.json["live"])
    assert re.findall("<tr data-key=([^>]+)>(?!<th)", first.json["live"]) == keys
    page.get("/", {"known": known}, headers={"If-None-Match": first.headers["ETag"]}, status=304)
    finished(journal, "acme/two", "dirty", message="acme/two: commit or stash")
    second = page.get("/", {"known": known}, headers={"If-None-Match": first.headers["ETag"]}).json
    assert rows(second["live"]) == ["acme/two"]
    assert second["title"].startswith("1 of 2 needs action")
    assert ">1%3C/text" in second["icon"].replace("%3E", ">")


def test_a_refresh_of_a_thousand_repositories_is_small(tmp_path):
    with generated.serve(tmp_path, 1000) as host:
        newest_first = "/?sort=-deployed"
        shown = urlopen(host.url + newest_first).read().decode()
        assert len(rows(shown)) == 100
        known = ".".join(re.findall(r"data-key=(\w+)", shown))
        host.change(10)
        refresh = urlopen(f"{host.url}{newest_first}&known={known}").read()
        assert set(rows(json.loads(refresh)["live"])) == set(host.names[-10:])
        assert len(refresh) < 20_000
        last = urlopen(f"{host.url}/?page=10").read().decode()
        assert len(rows(last)) == 100
        assert "901 to 1000 of 1000" in last
        assert 'rel="next"' not in last


def test_a_rolled_back_repository_counts_as_action_needed_and_names_the_rejected_commit(page, journal, tmp_path):
    (tmp_path / "root/acme/site/.git").mkdir(parents=True)
    run = finished(journal, "acme/site", "rolled-back", before="a" * 40, after="a" * 40)
    journal.save_commits(run, [Commit("a" * 40, "Ada", "Good", 9.0), Commit("b" * 40, "Bob", "Bad <idea>", 9.0)], 0)
    finished(journal, "acme/other", "updated")
    for path in ("/", "/?state=action+needed", "/?q=bad+idea", "/?q=rolled-back+acme"):
        shown = page.get(path).text
        assert re.search(r"<b>1</b> action needed", shown)
        assert "Bad &lt;idea&gt;" in within("section", shown)
    assert "rolled back" not in within("nav", shown)
    assert '<span class="subject">Bad &lt;idea&gt;</span>' in within("main", page.get(f"/runs/{run}").text)
    assert "Bad &lt;idea&gt;" in within("table", page.get("/repositories/acme/site").text)


def test_a_paused_run_claims_no_commits(page, journal):
    run = finished(journal, "acme/site", "paused", before="a" * 40, after="b" * 40)
    journal.save_commits(run, [Commit("b" * 40, "Ada", "Say hello", 9.0)], 1)
    assert "Commits" not in within("main", page.get(f"/runs/{run}").text)


def test_a_long_output_shows_its_end_and_links_to_the_rest(page, journal):
    run = finished(journal, "acme/site", "updated")
    journal.log_path(run).write_text("".join(f"line {number}\n" for number in range(100_000)))
    answer = page.get(f"/runs/{run}")
    shown = within("pre", answer.text)
    assert "line 99999\n" in shown
    assert ">line 9" in shown
    assert len(answer.body) < 100_000
    assert "line 0\n" in page.get(f"/runs/{run}/log").text


def test_many_problems_leave_the_list_in_sight(page, journal):
    for number in range(8):
        finished(journal, f"acme/site{number}", "dirty", message="commit or stash")
    shown = page.get("/").text
    assert within("section", shown).count("<details") == 5
    assert '<a href="/?state=action+needed">3 more</a>' in shown
    assert within("section", page.get("/?state=action+needed").text).count("<details") == 8


@pytest.mark.parametrize("cause", ["loop", "renamed"])
def test_a_problem_after_a_good_outcome_shows_its_cause(page, journal, cause):
    finished(journal, "acme/site", "updated", cause=cause, message="acme/site: look at it")
    summary = within("summary", within("section", page.get("/").text))
    assert f'<span class="word bad">{cause}</span>' in summary
    assert "updated" not in summary


def test_a_deleted_checkout_is_not_blamed_on_its_last_run(page, journal):
    run = finished(journal, "acme/gone", "dirty", after="a" * 40, message="acme/gone: commit", fix="git -C /x stash")
    journal.save_commits(run, [Commit("a" * 40, "Ada", "Say hello", 9.0)], 1)
    needs = within("section", page.get("/").text)
    assert '<span class="word bad">missing</span>' in needs
    assert "The checkout was deleted." in needs
    assert re.findall('<code class="command">([^<]*)', needs) == [
        "gitops-hook add acme/gone",
        "gitops-hook remove acme/gone",
    ]
    assert "Ada" not in needs
    shown = page.get("/repositories/acme/gone").text
    assert '<p class="fix bad">The checkout was deleted.</p>' in shown
    assert "stash" not in shown


def test_rejected_webhooks_are_counted_within_bounds_and_for_a_day(tmp_path, journal):
    clock = [1_000_000.0]
    rejections = Rejections(lambda: clock[0])
    for number in range(100):
        rejections.add("signature", f"10.0.0.{number}")
    for _ in range(17):
        rejections.add("signature", "10.0.0.1")
    found = {rejected.peer: rejected.requests for rejected in rejections.last_day()}
    assert (found["10.0.0.1"], found["others"], len(found)) == (18, 50, 51)
    page = TestApp(
        Dashboard(
            journal,
            Checkouts(tmp_path),
            rejections=rejections.last_day,
            secret_places=("GITHUB_WEBHOOK_SECRET", "/a/<b>"),
        ),
        extra_environ={"HTTP_HOST": "127.0.0.1:8788"},
    )
    shown = page.get("/").text
    places = "<code>GITHUB_WEBHOOK_SECRET</code> or <code>/a/&lt;b&gt;</code>"
    assert f"Does the forge use the secret in {places}?" in shown
    assert "10.0.0.1</code>" in shown
    clock[0] += 86400 + 3600
    assert rejections.last_day() == []
    assert "Rejected webhooks" not in page.get("/").text


def test_it_is_read_only(page):
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        assert page.request("/", method=method, status=405).headers["Allow"] == "GET, HEAD"
    assert page.head("/").body == b""


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:8788", "", "[::1].evil"])
def test_a_foreign_host_name_reads_nothing(page, host):
    page.get("/api/repositories", extra_environ={"HTTP_HOST": host}, status=421)


@pytest.mark.parametrize("host", ["localhost:8788", "[::1]:8788", "127.0.0.1", "10.0.0.7:80"])
def test_an_address_reads(page, host):
    page.get("/api/repositories", extra_environ={"HTTP_HOST": host}, status=200)


def test_a_journal_that_cannot_be_read_is_503(page, journal, tmp_path):
    journal.close()
    (tmp_path / "state/journal.db").write_bytes(b"noise" * 1000)
    page.get("/", status=503)


def test_the_daemon_serves_it_on_a_listener_of_its_own(tmp_path, start_daemon):
    upstream = Upstream(tmp_path / "forge")
    daemon = start_daemon(GITOPS_DASHBOARD_LISTEN="127.0.0.1:0")
    port = int(daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1])
    upstream.checkout(daemon.root)
    daemon.deliver(push("acme/site", upstream.commit({"a": "b"})))
    daemon.wait_for("run updated ")
    webhook_port, daemon.port = daemon.port, port
    status, shown = daemon.request("GET", "/api/repositories")
    assert (status, shown["repositories"][0]["state"]) == (200, "in sync")
    assert daemon.request("POST", "/api/webhook/gitops", b"{}")[0] == 405
    daemon.port = webhook_port
    assert daemon.request("GET", "/api/repositories")[0] == 404


def test_a_rejected_signature_names_the_places_of_the_secrets_and_no_secret(tmp_path, start_daemon):
    file = tmp_path / "<webhook> secrets"
    file.write_text("another secret of this host\n")
    daemon = start_daemon(GITOPS_DASHBOARD_LISTEN="127.0.0.1:0", GITHUB_WEBHOOK_SECRET_FILE=str(file))
    port = daemon.wait_for(r"listening for the dashboard .*address=\S*:(\d+)")[1]
    assert daemon.deliver({}, secret="the secret of somebody else")[0] == 401
    shown = unescape(urlopen(f"http://127.0.0.1:{port}/").read().decode())
    assert f"in <code>GITHUB_WEBHOOK_SECRET</code> or <code>{file}</code>?" in shown
    assert "another secret" not in shown
    assert SECRET not in shown


def test_a_refresh_of_a_page_without_rows_is_json(page, journal):
    run = finished(journal, "acme/site", "updated")
    for path in (f"/runs/{run}", "/repositories/acme/site", "/deliveries/updated"):
        refreshed = page.get(f"{path}?known=").json
        assert refreshed["live"] in page.get(path).text


@pytest.mark.parametrize("field", ["limit", "before", "repository"])
def test_an_empty_field_is_a_missing_field(page, journal, field):
    finished(journal, "acme/site", "updated")
    assert page.get(f"/api/runs?{field}=").json == page.get("/api/runs").json


@pytest.mark.parametrize(
    ("origin", "page"),
    [
        ("https://github.com/acme/site.git", "https://github.com/acme/site/commit/"),
        ("https://ada:token@github.com/acme/site", "https://github.com/acme/site/commit/"),
        ("git@github.com:acme/site.git", "https://github.com/acme/site/commit/"),
        ("ssh://git@github.com:22/acme/site.git/", "https://github.com/acme/site/commit/"),
        (
            "https://gitlab.example.org:8443/group/sub/site.git",
            "https://gitlab.example.org:8443/group/sub/site/-/commit/",
        ),
        ("https://gitea.example.org/acme/site", "https://gitea.example.org/acme/site/commit/"),
        ("https://codeberg.org/acme/site", "https://codeberg.org/acme/site/commit/"),
        ("https://bitbucket.org/acme/site.git", "https://bitbucket.org/acme/site/commits/"),
        ("https://bitbucket.example.org/scm/acme/site.git", None),
        ("https://git.example.org/acme/site.git", None),
        ("http://github.com/acme/site.git", None),
        ("site-alias:acme/site", None),
        ("/srv/git/github/acme/site.git", None),
        ("https://github.com/acme/site.git?a=<b>", None),
        ("https://example.org/github.com/acme/site.git", None),
        ("", None),
    ],
)
def test_a_commit_links_to_a_known_forge(origin, page):
    assert commit_url(origin, "a" * 40) == (page and page + "a" * 40)


def test_commits_link_to_the_forge_of_the_remote(page, journal, tmp_path):
    path = Upstream(tmp_path / "forge").checkout(tmp_path / "root")
    git("remote", "set-url", "origin", "https://ada:token@github.com/acme/site.git", cwd=path)
    run = finished(journal, "acme/site", "updated", before="b" * 40, after="a" * 40)
    journal.save_commits(run, [Commit("a" * 40, "Ada", "Say hello", 9.0)], 1)
    for address in ("/", "/repositories/acme/site", f"/runs/{run}", "/deliveries/updated", "/?q=hello"):
        shown = page.get(address).text
        assert f'<a href="https://github.com/acme/site/commit/{"a" * 40}"><code>aaaaaaaa' in shown
        assert "token" not in shown


def test_a_search_finds_runs_by_commit_subject_author_and_outcome(page, journal):
    old = finished(journal, "acme/site", "deploy-failed", before="a" * 40, after="b" * 40)
    journal.save_commits(old, [Commit("b" * 40, "Grace", "Break the total", 9.0)], 1)
    finished(journal, "acme/site", "updated", before="b" * 40, after="c" * 40)
    finished(journal, "acme/blog", "updated", before="d" * 40, after="e" * 40)
    for words in ("bbbbbbbb", "break", "GRACE", "failed", "site total"):
        shown = page.get("/", {"q": words}).text
        assert re.findall(r'<th scope="row"><a href="/runs/(\d+)"', shown) == [str(old)], words
    assert "<h2" not in page.get("/", {"q": "nothing"}).text


def test_pushes_that_waited_are_listed(page, journal):
    now = time.time()
    for repository, received in (("acme/slow", now - 300), ("acme/fast", now - 3), ("acme/late", now - 200)):
        journal.record(Delivery(repository, "push", received, repository, "refs/heads/main"))
    for repository in ("acme/slow", "acme/fast"):
        claim = journal.start(repository, "push")
        journal.finish(claim.run._replace(ended=now, outcome="updated"), settled=True)
    shown = re.sub("<[^>]*>", " ", within("table", page.get("/").text.partition('id="waited"')[2]))
    assert re.search(r"acme/slow +1 push +5 min", shown)
    assert re.search(r"acme/late +1 push +3 min", shown)
    assert "acme/fast" not in shown


@pytest.mark.parametrize(
    ("host", "hint"),
    [("github.com", "gitops-hook audit acme/missed"), ("git.example.org", "webhook's deliveries at the forge")],
)
def test_a_push_that_only_a_sweep_found_is_listed(page, journal, tmp_path, host, hint):
    checkout = tmp_path / "root/acme/missed"
    git("init", "--quiet", checkout, cwd=tmp_path)
    git("remote", "add", "origin", f"https://{host}/acme/missed.git", cwd=checkout)
    journal.record(Delivery("g", "push", time.time(), "acme/announced", "refs/heads/main"))
    runs = {}
    for repository, before in (
        ("acme/missed", "a" * 40),
        ("acme/announced", "a" * 40),
        ("acme/cloned", ""),
        ("acme/same", "b" * 40),
    ):
        claim = journal.start(repository, "sweep")
        runs[repository] = claim.run.id
        journal.finish(
            claim.run._replace(ended=time.time(), outcome="updated", before=before, after="b" * 40), settled=True
        )
    shown = within("table", page.get("/").text.partition('id="found"')[2])
    assert re.findall('href="(/runs/[^"]+)"', shown) == [f"/runs/{runs['acme/missed']}"]
    assert hint in unescape(shown)


def test_a_repository_page_shows_the_environment_and_the_drift(page, journal, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    path = upstream.checkout(tmp_path / "root")
    path = path.rename(path.with_name("site@staging"))
    head = upstream.head()

    def facts() -> str:
        return re.sub("<[^>]*>", " ", within("dl", page.get("/repositories/acme/site@staging").text))

    assert re.search("Environment +staging", facts())
    assert "none: the commit of the branch is checked out" in facts()
    git("update-ref", "refs/gitops/deployed", head, cwd=path)
    assert "checked out and deployed" in facts()
    tip = upstream.commit({"a": "1"})
    git("fetch", "--quiet", "origin", cwd=path)
    assert re.search(f"{head[:10]} +is checked out, the branch is at +{tip[:10]}", facts())
    git("checkout", "--quiet", "--detach", tip, cwd=path)
    assert re.search(f"{tip[:10]} +is checked out, the last successful deploy is +{head[:10]}", facts())


def test_a_repository_page_shows_who_paused_or_pinned_it_and_why(page, journal, tmp_path):
    upstream = Upstream(tmp_path / "forge")
    path = upstream.checkout(tmp_path / "root")

    def facts() -> str:
        return re.sub("<[^>]*>", "", within("dl", page.get("/repositories/acme/site").text).replace("</dt>", ": "))

    assert "Paused" not in facts()
    git("config", "gitops.pin", upstream.head(), cwd=path)
    git("config", "gitops.pinnedBy", "ada 2026-01-31T12:00:00Z a <bad> release", cwd=path)
    assert re.search(rf"Pinned: at {upstream.head()[:10]}, by ada, \d+ d ago, “a &lt;bad&gt; release”", facts())
    git("config", "gitops.paused", "2999-01-31T12:00:00Z", cwd=path)
    git("config", "gitops.pausedBy", "grace 2026-01-31T12:00:00Z", cwd=path)
    assert re.search(r"Paused: by grace, \d+ d ago, until 2999-01-31 12:00:00 UTC", facts())


def test_each_state_of_the_list_has_its_command(page, journal):
    run = finished(journal, "acme/stuck", "dirty", message="acme/stuck: commit or stash", fix="git -C /x stash")
    finished(journal, "acme/fine", "updated")
    table = within("table", page.get("/").text)
    commands = re.findall('<code class="command">([^<]*)</code> <a href="([^"]*)"', table)
    assert commands == [("git -C /x stash", f"/runs/{run}"), ("gitops-hook runs acme/fine", f"/runs/{run + 1}")]


def test_a_running_run_shows_its_current_step(page, journal):
    claim = journal.start("acme/site", "push")
    steps = journal.log_path(claim.run.id).with_suffix(".result")
    shown = []
    for lines in ("", f"fetched={time.time()}\n", f"fetched={time.time()}\ndeployed={time.time()}\n"):
        steps.write_text(lines)
        line = within("ol", page.get(f"/runs/{claim.run.id}").text)
        shown.append(re.findall("<b>([^<]*)</b>", line))
    assert shown == [
        ["Started", "Fetching"],
        ["Started", "Fetched", "Deploying"],
        ["Started", "Fetched", "Deployed", "Checking the health"],
    ]
