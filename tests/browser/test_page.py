"""The page as people meet it, in a real browser, before a real daemon and real runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

#: Everything that a page can be asked for on the host of `scene`; the names stand for numbers of runs.
PATHS = (
    "/",
    "/?q=acme&sort=-run",
    "/?q=nothing+of+the+kind",
    "/repositories/acme/billing",
    "/runs/{failed}",
    "/runs/{updated}",
    "/runs/{rolled back}",
    "/deliveries/{guid}",
    "/runs/999999",
)


def at(scene, path: str) -> str:
    return scene.url + path.format(**scene.runs, guid=scene.guid)


def shown_rows(page) -> list[str]:
    return page.locator("table.overview tbody th").all_inner_texts()


def has_rows(page, *names: str) -> None:
    """Wait until the overview shows exactly these repositories, in this order."""
    page.wait_for_function(
        "names => [...document.querySelectorAll('table.overview tbody th')].map(row => row.innerText).join() === names",
        arg=",".join(names),
    )


class TestOverview:
    def test_the_overview_shows_live_commits_and_problems(self, scene, open_page):
        page = open_page(at(scene, "/"))
        assert page.title().startswith("3 of 8 need action · ")
        assert page.get_by_role("heading", level=1).inner_text() == "3 of 8 need action"
        assert page.get_by_text("Daemon running").is_visible()
        needs = page.get_by_role("region", name="Action needed")
        for summary in needs.locator("summary").all():
            summary.click()
        failed = needs.get_by_role("listitem").filter(has_text="acme/billing")
        assert "gitops.deploy failed with exit 3" in failed.inner_text()
        assert "migration 42 failed: no such column" in failed.inner_text()
        assert "gitops.dirty stash" in needs.get_by_role("listitem").filter(has_text="acme/docs").inner_text()
        states = page.locator("table.overview tbody .state").all_inner_texts()
        assert states[:4] == ["action needed", "action needed", "rolled back", "waiting to retry"]
        assert {"paused", "in sync"} < set(states)
        shop = page.get_by_role("row", name="acme/shop")
        assert page.locator("svg.history").count() == len(states)
        assert "updated" in shop.get_by_role("img").locator("title").text_content()
        failed.get_by_role("link", name=f"Run {scene.runs['failed']}").click()
        page.get_by_role("heading", name="acme/billing").wait_for()

    def test_search_order_and_filters_apply_at_once(self, scene, open_page):
        page = open_page(at(scene, "/"))
        page.evaluate("window.stays = true")
        everything = shown_rows(page)
        page.locator("#q").press_sequentially("infra")
        has_rows(page, *(name for name in everything if name.startswith("infra")))
        page.get_by_role("columnheader", name="Repository").get_by_role("link").click()
        has_rows(page, "infra/dns", "infra/monitoring")
        page.get_by_role("columnheader", name="Repository").get_by_role("link").click()
        has_rows(page, "infra/monitoring", "infra/dns")
        assert page.get_by_role("columnheader", name="Repository").get_attribute("aria-sort") == "descending"
        page.locator("#q").fill("")
        has_rows(page, *sorted(everything, reverse=True))
        page.get_by_role("navigation").get_by_role("link", name="waiting to retry").click()
        has_rows(page, "infra/dns")
        assert page.url.endswith("sort=-repository") and "state=waiting+to+retry" in page.url
        assert page.evaluate("window.stays")
        page.go_back()
        has_rows(page, *sorted(everything, reverse=True))
        page.go_forward()
        has_rows(page, "infra/dns")
        page.reload()
        has_rows(page, "infra/dns")

    def test_a_guid_identifies_a_delivery_and_its_run(self, scene, open_page):
        page = open_page(at(scene, "/"))
        page.locator("#q").fill(scene.guid)
        page.wait_for_url("**/deliveries/**")
        assert "ended" in page.locator(".became .lead").inner_text()

    def test_the_page_refreshes_itself(self, stage, open_page):
        page = open_page(stage.url)
        assert page.get_by_role("heading", name="No repository yet").is_visible()
        stage.repository("acme/site")
        stage.push("acme/site")
        page.get_by_role("row", name="acme/site").get_by_text("in sync").wait_for()
        link = page.get_by_role("row", name="acme/site").get_by_role("link", name="acme/site")
        link.focus()
        stage.repository("acme/blog", deploy="exit 1")
        stage.push("acme/blog")
        page.get_by_role("region", name="Action needed").locator("summary", has_text="acme/blog").wait_for()
        assert page.evaluate("document.activeElement.textContent") == "acme/site"
        assert page.get_by_role("status").text_content() == page.title() and page.title().startswith("1 of 2 need")

    def test_it_says_when_the_daemon_does_not_answer(self, stage, chromium):
        page = chromium.new_page()
        page.goto(stage.url)
        stage.daemon.stop()
        page.get_by_text("Not connected since").wait_for()
        page.context.close()


class TestRun:
    def test_a_failed_run_shows_the_reason_and_the_fix(self, scene, open_page):
        page = open_page(at(scene, "/runs/{failed}"))
        assert "gitops.deploy failed with exit 3" in page.locator(".fix.bad").inner_text()
        assert "which stays checked out; the next run" in page.locator(".fix.bad").inner_text()
        line = page.get_by_role("region", name="Timeline").get_by_role("listitem").all_inner_texts()
        assert [item.split()[0] for item in line] == ["Received", "Queued", "Fetched", "Failed"]
        assert "migration 42 failed" in page.get_by_role("region", name="Output").inner_text()

    def test_the_log_grows_during_the_run_and_stays(self, stage, open_page):
        gate = stage.folder / "gate"
        os.mkfifo(gate)
        deploy = rf"""printf '\033[32mfirst\033[0m line\n\342'; read -r word <{gate}; printf '\202\254 %s\n' "$word"
        read -r word <{gate}; seq 3000; printf '\033[31mthe end\033[0m\n'"""
        stage.repository("acme/site", deploy=deploy)
        stage.push("acme/site", wait=False)
        page = open_page(stage.url)
        page.get_by_role("row", name="acme/site").get_by_role("link", name="running").click()
        page.locator("#following").wait_for()
        log = page.locator("#log")
        assert log.inner_text().startswith("first line\n")
        gate.write_text("second\n")
        page.locator("#log", has_text="€ second").wait_for()
        assert page.get_by_text("running").first.is_visible()
        gate.write_text("third\n")
        page.get_by_text("deployed").first.wait_for()
        page.locator(".lead .word.good").wait_for()
        assert page.locator("#following").count() == 0
        followed = log.inner_text()
        page.reload()
        assert log.inner_text() == followed
        assert log.inner_text().count("\n3000\n") == 1
        assert log.locator(".s31").inner_text() == "the end"

    def test_a_hostile_log_does_no_harm(self, stage, open_page):
        stage.repository(
            "acme/site",
            deploy=r"""printf '</pre><script>window.pwned=1</script><img src=x onerror="pwned=1">&lt;\033[31;1mred\033[0m'
            printf '\033]0;title\007\033]8;;javascript:pwned=1\033\\link\033]8;;\033\\ \377\376 \342\200\256evil\000\033[2J'""",
        )
        run = stage.push("acme/site", {"<script>pwned=1</script>": "x"})
        page = open_page(f"{stage.url}/runs/{run}")
        log = page.locator("#log")
        assert log.inner_text().startswith(
            '</pre><script>window.pwned=1</script><img src=x onerror="pwned=1">&lt;redlink \ufffd\ufffd \\u202eevil'
        )
        assert log.locator("*").count() == log.locator("span").count() == 1
        for path in (f"/runs/{run}", f"/runs/{run}/log", "/", "/repositories/acme/site"):
            page.goto(stage.url + path)
            assert page.evaluate("typeof window.pwned") == "undefined"


@pytest.fixture(scope="session")
def axe() -> str:
    """Return the script of axe-core, which checks a page for faults of accessibility."""
    package = pytest.importorskip("axe_core_python", reason="no axe-core-python in this environment")
    return (Path(package.__file__).parent / "axe.min.js").read_text()


class TestEverybody:
    @pytest.mark.parametrize("path", PATHS)
    @pytest.mark.parametrize("scheme", ["light", "dark"])
    def test_axe_finds_nothing_serious(self, scene, chromium, axe, path, scheme):
        context = chromium.new_context(color_scheme=scheme)
        page = context.new_page()
        page.goto(at(scene, path))
        page.evaluate(axe)
        found = page.evaluate("axe.run()")["violations"]
        context.close()
        violations = [
            f"{fault['impact']} {fault['id']}: {[node['html'][:200] for node in fault['nodes']]}" for fault in found
        ]
        assert violations == []

    def test_the_dark_theme_is_dark(self, scene, open_page):
        ground = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
        assert min(open_page(at(scene, "/"), color_scheme="light").evaluate(ground)) > 200
        assert max(open_page(at(scene, "/"), color_scheme="dark").evaluate(ground)) < 50

    @pytest.mark.parametrize("path", PATHS[:-1])
    @pytest.mark.parametrize("width", [360, 768])
    def test_a_narrow_screen_does_not_scroll_sideways(self, scene, open_page, path, width):
        page = open_page(at(scene, path), width=width, height=740)
        assert page.evaluate("document.documentElement.scrollWidth") == width
        beyond = page.evaluate(
            """width => [...document.querySelectorAll('body *')]
                .filter(element => !element.closest('.wide, .skip, svg') && element.checkVisibility())
                .filter(element => getComputedStyle(element.parentElement).textOverflow !== 'ellipsis')
                .filter(element => element.getBoundingClientRect().right > width + 1).map(element => element.outerHTML)""",
            width,
        )
        assert beyond == []

    def test_the_page_works_by_keyboard(self, scene, open_page):
        page = open_page(at(scene, "/"))

        def focused() -> str:
            return page.evaluate("(document.activeElement.innerText || document.activeElement.id || '').trim()")

        def to(text: str) -> None:
            for _ in range(40):
                page.keyboard.press("Tab")
                if focused() == text:
                    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline == "solid", f"no focus to be seen on {text}"
                    return
            raise AssertionError(f"no way to {text}")

        to("Skip to the content")
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        assert focused() and page.evaluate("document.activeElement.id") == "main"
        to("Repository")
        page.keyboard.press("Enter")
        page.wait_for_url("**sort=repository")
        has_rows(page, *sorted(shown_rows(page)))
        to("acme/billing")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="acme/billing").wait_for()
        to(str(scene.runs["failed"]))
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=f"acme/billing run {scene.runs['failed']}").wait_for()
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.id") == "q"
        page.keyboard.type("shop")
        page.keyboard.press("Enter")
        has_rows(page, "acme/shop")

    def test_without_a_script_everything_is_there(self, scene, open_page):
        page = open_page(at(scene, "/"), java_script_enabled=False)
        assert page.get_by_role("region", name="Action needed").is_visible()
        page.locator("#q").fill("infra")
        page.get_by_role("button", name="Search").click()
        assert sorted(shown_rows(page)) == ["infra/dns", "infra/monitoring"]
        page.get_by_role("columnheader", name="Repository").get_by_role("link").click()
        assert shown_rows(page) == ["infra/dns", "infra/monitoring"]
        page.get_by_role("link", name="infra/monitoring").click()
        page.locator("summary").first.click()
        assert page.locator("details[open] li").first.is_visible()
        page.goto(at(scene, "/runs/{failed}"))
        assert "migration 42 failed" in page.locator("#log").inner_text()
        page.goto(scene.url)
        page.locator("#q").fill(scene.guid)
        page.keyboard.press("Enter")
        page.locator(".became").wait_for()


def test_pictures_for_the_readme(scene, open_page, pictures):
    """With PICTURES=docs they are kept. The root of this machine appears as that of a host."""
    for name, path in (("overview", "/?q="), ("run", "/runs/{failed}")):
        page = open_page(at(scene, path))
        page.evaluate(
            """folder => {
                const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                while (walk.nextNode()) walk.currentNode.data = walk.currentNode.data.replaceAll(folder, "/srv/gitops");
            }""",
            str(scene.daemon.root),
        )
        picture = pictures / f"{name}.png"
        page.screenshot(path=picture, full_page=True)
        assert picture.stat().st_size > 20_000
