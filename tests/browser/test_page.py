"""Test the pages in a real browser, with a real daemon and real runs."""

from __future__ import annotations

import os
import re
import shutil

import generated
import pytest

from gitops_hook.dashboard.pages import filter_of
from gitops_hook.outcomes import BAD, STATES, severity_of

#: Every kind of page on the host of `scene`. The names in braces stand for numbers of runs.
PATHS = (
    "/",
    "/?q=acme&sort=-run",
    "/?q=nothing+of+the+kind",
    "/repositories/acme/billing",
    "/runs/{failed}",
    "/runs/{updated}",
    "/runs/{rolled back}",
    "/runs/{paused}",
    "/repositories/acme/intranet",
    "/deliveries/{guid}",
    "/runs/999999",
)
WIDTHS = (1440, 768, 360)


def at(scene, path: str) -> str:
    return scene.url + path.format(**scene.runs, guid=scene.guid)


def shown_rows(page) -> list[str]:
    return page.locator("table.overview tbody th").all_inner_texts()


def has_rows(page, *names: str) -> None:
    """Wait until the list consists of these repositories in this order."""
    page.wait_for_function(
        "names => [...document.querySelectorAll('table.overview tbody th')].map(row => row.innerText).join() === names",
        arg=",".join(names),
    )


def problem(page, name: str):
    """Return the line of a repository in the list of problems."""
    return page.get_by_role("region", name="Action needed").get_by_role("listitem").filter(has_text=name)


def state_filter(page, state: str):
    return page.get_by_role("navigation", name="States").get_by_role("link", name=re.compile(rf"^\d+ {state}$"))


class TestOverview:
    def test_the_verdict_is_the_heading_and_the_title(self, scene, open_page):
        page = open_page(at(scene, "/"))
        assert page.get_by_role("heading", level=1).inner_text() == "3 of 8 need action"
        assert page.title().startswith("3 of 8 need action · ")
        assert page.get_by_text("Daemon running").is_visible()

    def test_each_problem_is_one_line_that_opens_to_its_details(self, scene, open_page):
        page = open_page(at(scene, "/"), width=1440)
        assert page.locator(".needs li").count() == 3
        failed = problem(page, "acme/billing")
        assert failed.bounding_box()["height"] < 40
        line = failed.inner_text()
        assert "deploy-failed" in line
        assert "Margaret Hamilton" in line
        assert "migration 42 failed" not in line
        failed.locator("summary").click()
        details = failed.inner_text()
        assert "gitops.deploy failed with exit 3" in details
        assert "migration 42 failed: no such column" in details
        assert "gitops-hook sync acme/billing" in details
        problem(page, "acme/docs").locator("summary").click()
        assert "stash" in problem(page, "acme/docs").locator("code.command").inner_text()
        failed.get_by_role("link", name=f"Run {scene.runs['failed']}").click()
        page.get_by_role("heading", name=f"acme/billing run {scene.runs['failed']}").wait_for()

    def test_the_list_has_every_repository_with_its_state_and_history(self, scene, open_page):
        page = open_page(at(scene, "/"), width=1440)
        states = page.locator("table.overview tbody .word").all_inner_texts()
        assert states[:5] == ["action needed", "action needed", "rolled back", "waiting to retry", "paused"]
        assert set(states[5:]) == {"in sync"}
        assert page.locator("table.overview svg.history").count() == len(states) == 8
        shop = page.locator("table.overview").get_by_role("row", name="acme/shop")
        assert "updated" in shop.get_by_role("img").locator("title").text_content()

    def test_search_order_and_filters_act_without_loading_the_page(self, scene, open_page):
        page = open_page(at(scene, "/"))
        page.evaluate("window.stays = true")
        everything = shown_rows(page)
        page.get_by_role("searchbox").press_sequentially("infra")
        has_rows(page, *(name for name in everything if name.startswith("infra")))
        page.locator("table.overview").get_by_role("columnheader", name="Repository").get_by_role("link").click()
        has_rows(page, "infra/dns", "infra/monitoring")
        page.locator("table.overview").get_by_role("columnheader", name="Repository").get_by_role("link").click()
        has_rows(page, "infra/monitoring", "infra/dns")
        assert (
            page.locator("table.overview").get_by_role("columnheader", name="Repository").get_attribute("aria-sort")
            == "descending"
        )
        page.get_by_role("searchbox").fill("")
        has_rows(page, *sorted(everything, reverse=True))
        state_filter(page, "action needed").click()
        has_rows(page, "acme/search", "acme/docs", "acme/billing")
        assert state_filter(page, "action needed").get_attribute("aria-current") == "true"
        assert page.evaluate("window.stays")
        page.reload()
        has_rows(page, "acme/search", "acme/docs", "acme/billing")

    def test_back_restores_the_filter_and_the_search(self, scene, open_page):
        page = open_page(at(scene, "/"))
        everything = shown_rows(page)
        state_filter(page, "paused").click()
        has_rows(page, "acme/intranet")
        state_filter(page, "waiting to retry").click()
        has_rows(page, "infra/dns")
        page.locator("table.overview").get_by_role("row", name="infra/dns").get_by_role(
            "link", name="infra/dns"
        ).click()
        page.get_by_role("heading", name="infra/dns").wait_for()
        page.go_back()
        has_rows(page, "infra/dns")
        page.go_back()
        has_rows(page, "acme/intranet")
        page.go_back()
        has_rows(page, *everything)
        page.get_by_role("searchbox").press_sequentially("shop")
        has_rows(page, "acme/shop")
        page.go_back()
        has_rows(page, *everything)
        assert page.get_by_role("searchbox").input_value() == ""

    def test_a_search_for_a_guid_opens_its_delivery(self, scene, open_page):
        page = open_page(at(scene, "/"))
        page.get_by_role("searchbox").fill(scene.guid)
        page.wait_for_url("**/deliveries/**")
        assert "ended" in page.locator(".became .lead").inner_text()

    def test_a_page_has_100_rows(self, stage, open_page):
        checkout = stage.repository("acme/r000")
        for number in range(1, 120):
            shutil.copytree(checkout, checkout.with_name(f"r{number:03}"), symlinks=True)
        page = open_page(f"{stage.url}/?sort=repository")
        has_rows(page, *(f"acme/r{number:03}" for number in range(100)))
        pager = page.get_by_role("navigation", name="Pages")
        assert "1 to 100 of 120" in pager.inner_text()
        page.evaluate("scrollTo(0, document.body.scrollHeight)")
        pager.get_by_role("link", name="Next").click()
        has_rows(page, *(f"acme/r{number:03}" for number in range(100, 120)))
        assert "101 to 120 of 120" in pager.inner_text()
        assert page.evaluate("scrollY") == 0
        page.get_by_role("searchbox").fill("r01")
        has_rows(page, *(f"acme/r{number:03}" for number in range(10, 20)))
        assert pager.count() == 0

    def test_a_refresh_brings_only_the_rows_that_changed(self, stage, open_page):
        page = open_page(stage.url)
        assert page.get_by_role("heading", name="No repository yet").is_visible()
        stage.repository("acme/site")
        stage.push("acme/site")
        row = page.locator("table.overview").get_by_role("row", name="acme/site")
        row.get_by_text("in sync").wait_for()
        row.get_by_role("link", name="acme/site").focus()
        page.evaluate("window.row = document.querySelector('table.overview tbody tr')")
        with page.expect_response(
            lambda response: "known=" in response.url and "acme/blog" in response.text()
        ) as brought:
            stage.repository("acme/blog", deploy="exit 1")
            stage.push("acme/blog")
        assert "acme/blog" in brought.value.json()["live"]
        assert "acme/site" not in brought.value.json()["live"]
        problem(page, "acme/blog").wait_for()
        has_rows(page, "acme/blog", "acme/site")
        assert page.evaluate("window.row.isConnected")
        assert page.evaluate("document.activeElement.textContent") == "acme/site"
        assert page.get_by_role("status").text_content() == page.title()
        assert page.title().startswith("1 of 2 needs action")

    def test_a_refresh_does_not_break_a_click(self, scene, open_page):
        page = open_page(at(scene, "/"))
        page.locator(".overview summary").first.hover()
        page.mouse.down()
        with page.expect_response(lambda response: "known=" in response.url) as refreshed:
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        refreshed.value.finished()
        page.evaluate("fetch('/').then(response => response.text())")  # the script has handled the refresh before
        page.mouse.up()
        assert page.locator(".overview details[open]").count() == 1

    def test_opened_details_stay_open_after_a_refresh(self, stage, open_page):
        stage.repository("acme/blog", deploy="exit 1")
        stage.push("acme/blog")
        page = open_page(stage.url)
        problem(page, "acme/blog").locator("summary").click()
        stage.repository("acme/site")
        stage.push("acme/site")
        page.locator("table.overview").get_by_role("row", name="acme/site").wait_for()
        assert problem(page, "acme/blog").get_by_text("Next:").is_visible()

    @pytest.mark.parametrize("path", ["/", "/runs/{failed}", "/repositories/acme/billing"])
    def test_a_lost_connection_is_visible_until_it_returns(self, scene, chromium, path):
        context = chromium.new_context()
        page = context.new_page()
        page.goto(at(scene, path))
        title, icon = page.title(), page.locator("link[rel=icon]").get_attribute("href")
        context.set_offline(True)
        page.get_by_text(re.compile(r"Not connected since \d\d:\d\d")).wait_for()
        assert page.title().startswith("Not connected")
        assert page.locator("link[rel=icon]").get_attribute("href") != icon
        context.set_offline(False)
        page.wait_for_function("title => document.title === title", arg=title)
        assert page.locator("link[rel=icon]").get_attribute("href") == icon
        assert page.get_by_text("Not connected").count() == 0
        context.close()


class TestRun:
    def test_a_failed_run_shows_the_cause_and_the_next_command(self, scene, open_page):
        page = open_page(at(scene, "/runs/{failed}"))
        assert "gitops.deploy failed with exit 3" in page.locator(".fix.bad").inner_text()
        assert page.locator("code.command").inner_text() == "gitops-hook sync acme/billing"
        steps = page.get_by_role("region", name="Timeline").get_by_role("listitem").all_inner_texts()
        assert [step.split()[0] for step in steps] == ["Received", "Queued", "Fetched", "Failed"]
        assert "migration 42 failed" in page.get_by_role("region", name="Output").inner_text()

    def test_a_command_is_copied(self, scene, open_page):
        page = open_page(at(scene, "/runs/{failed}"), permissions=["clipboard-read", "clipboard-write"])
        page.get_by_role("button", name="Copy gitops-hook sync acme/billing").click()
        page.get_by_text("Copied").wait_for()
        assert page.evaluate("navigator.clipboard.readText()") == "gitops-hook sync acme/billing"

    @pytest.mark.parametrize("path", ["/runs/{failed}", "/repositories/acme/billing", "/deliveries/{guid}"])
    def test_a_refresh_of_a_page_without_a_list_succeeds(self, scene, open_page, path):
        page = open_page(at(scene, path))
        with page.expect_response(lambda response: "known=" in response.url) as refreshed:
            page.evaluate("document.dispatchEvent(new Event('visibilitychange'))")
        assert refreshed.value.json()["title"] == page.title()
        assert page.get_by_text("Not connected").count() == 0

    def test_the_page_follows_a_run_to_its_end(self, stage, open_page):
        # One each, because a second reader of a pipe can meet its first writer, and then reads nothing.
        gate, exit_gate = stage.folder / "gate", stage.folder / "exit"
        os.mkfifo(gate)
        os.mkfifo(exit_gate)
        deploy = rf"""printf '\033[32mfirst\033[0m line\n\342'; read -r word <{gate}; printf '\202\254 %s\n' "$word"
        read -r word <{exit_gate}; seq 3000; printf '\033[31mthe end\033[0m\n'"""
        stage.repository("acme/site", deploy=deploy)
        stage.push("acme/site", wait=False)
        page = open_page(stage.url)
        row = page.locator("table.overview").get_by_role("row", name="acme/site")
        assert re.fullmatch(r"\d+ s", row.locator("td.run").text_content()), "the time so far has no 'ago'"
        row.locator("summary").click()
        assert row.locator("code.command").inner_text() == "gitops-hook logs -f acme/site"
        row.get_by_role("link", name="Run 1").click()
        page.get_by_text("New output appears here").wait_for()
        log = page.locator("#log")
        page.locator("#log", has_text="first line").wait_for()
        gate.write_text("second\n")
        page.locator("#log", has_text="€ second").wait_for()
        assert page.locator(".lead .word.wait").inner_text() == "running"
        assert page.locator("code.command").inner_text() == "gitops-hook logs -f acme/site"
        box = page.get_by_label("Scroll to new output")
        (top, height), (above, whole) = (
            (place["y"], place["height"]) for place in (box.bounding_box(), box.locator("..").bounding_box())
        )
        assert above <= top and top + height <= above + whole, "the box is not beside its text"
        assert page.get_by_role("region", name="Timeline").get_by_text("Deploying").is_visible()
        assert page.get_by_label("Scroll to new output").is_checked()
        exit_gate.write_text("third\n")
        page.locator(".lead .word.good", has_text="updated").wait_for()
        page.get_by_role("region", name="Timeline").get_by_text("Done").wait_for()
        assert page.get_by_text("New output appears here").count() == 0
        assert log.evaluate("log => log.scrollTop + log.clientHeight >= log.scrollHeight - 1")
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


#: Every look of a page: its width, and its colors.
LOOKS = [(width, scheme) for width in WIDTHS for scheme in ("light", "dark")]
#: The pages of generated hosts with 3, 40 and 1,000 repositories. The one with 40 has every state.
GENERATED = (3, 40, 1000)
OPEN_DETAILS = "for (const details of document.querySelectorAll('details:not([name])')) details.open = true"
#: The elements that reach beyond the right edge, except in a part that scrolls or ends in an ellipsis.
BEYOND_THE_EDGE = """width => [...document.querySelectorAll('body *')]
    .filter(element => !element.closest('.wide, .skip, svg') && element.checkVisibility())
    .filter(element => getComputedStyle(element.parentElement).textOverflow !== 'ellipsis')
    .filter(element => element.getBoundingClientRect().right > width + 1).map(element => element.outerHTML)"""
#: Names, states, ages and durations that are cut off or wrapped. A long name and a subject may be cut off.
CUT_OFF = """() => [...document.querySelectorAll(
        '.overview tbody th:not(:has([title])), .overview td:not(.commit), .needs b, .needs .word, time, .word')]
    .filter(element => element.checkVisibility() && !element.closest('.more, details p'))
    .filter(element => element.getClientRects().length > 1
        || getComputedStyle(element).display !== 'inline' && element.scrollWidth > element.clientWidth)
    .map(element => element.outerHTML)"""

#: The cells of a table that a narrow screen shows as blocks, whose content reaches into the next cell.
SPILLED = """() => [...document.querySelectorAll('.wide tr > *')]
    .filter(cell => getComputedStyle(cell.parentElement).display === 'grid' && cell.scrollWidth > cell.clientWidth)
    .map(cell => cell.outerHTML)"""


def set_look(page, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 740 if width < 500 else 900})
    page.emulate_media(color_scheme=scheme)


class TestEveryHost:
    @pytest.mark.parametrize("repositories", GENERATED)
    def test_every_look_is_accessible_and_fits(self, generated_host, open_page, violations, repositories):
        page = open_page(generated_host(repositories).url)
        for width, scheme in LOOKS:
            set_look(page, width, scheme)
            assert violations(page) == [], (width, scheme)
            assert page.evaluate(BEYOND_THE_EDGE, width) == [], (width, scheme)
            assert page.evaluate(CUT_OFF) == [], (width, scheme)
            assert page.evaluate(SPILLED) == [], (width, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") == width

    @pytest.mark.parametrize("repositories", GENERATED)
    @pytest.mark.parametrize(("width", "height"), [(1440, 37), (768, 37), (360, 60)])
    def test_rows_are_low_and_the_list_starts_above_the_fold(
        self, generated_host, open_page, repositories, width, height
    ):
        page = open_page(generated_host(repositories).url)
        set_look(page, width, "light")
        heights = page.evaluate("[...document.querySelectorAll('.overview tbody tr')].map(row => row.offsetHeight)")
        assert len(heights) == min(repositories, 100)
        assert max(heights) <= height
        needs = page.locator(".needs li")
        failures = [state for state, _ in generated.NEWEST[:repositories] if severity_of(state) == BAD]
        assert needs.count() == len(failures) == (1 if repositories == 3 else 4)
        assert max(line.bounding_box()["height"] for line in needs.all()) <= height
        first = page.locator(".overview tbody tr").first.bounding_box()
        assert first["y"] + first["height"] <= page.viewport_size["height"]

    def test_every_state_has_its_filter_its_command_and_its_runs(self, generated_host, open_page):
        host = generated_host(40)
        page = open_page(host.url)
        states = page.locator(".overview .word").all_inner_texts()
        filters = page.get_by_role("navigation", name="States").get_by_role("link").all_inner_texts()
        in_filters = {text.partition(" ")[2] for text in filters}
        assert {*states} == {*STATES}
        assert in_filters == {"all", *map(filter_of, STATES)}
        for state in STATES:
            row = page.locator(".overview tbody tr").filter(has=page.get_by_text(state, exact=True)).first
            row.locator("summary").click()
            assert row.get_by_role("button", name="Copy").first.is_visible()
            for command in row.locator("code.command").all_inner_texts():
                assert command.endswith(row.locator("th a").inner_text())
            row.locator("summary").click()
        assert page.locator(".overview details[open]").count() == 0

    def test_a_deleted_checkout_is_a_problem_with_two_ways_out(self, generated_host, open_page):
        host = generated_host(40)
        ((name, _),) = [pair for pair in zip(host.names, generated.NEWEST) if pair[1][0] == "missing"]
        page = open_page(host.url, width=1440)
        line = problem(page, name)
        assert line.locator(".word").inner_text() == "missing"
        line.locator("summary").click()
        assert line.get_by_text("The checkout was deleted.").is_visible()
        commands = [f"gitops-hook add {name}", f"gitops-hook remove {name}"]
        assert line.locator("code.command").all_inner_texts() == commands
        line.get_by_role("link", name=name, exact=True).click()
        page.get_by_role("heading", level=1, name=name).wait_for()
        assert page.get_by_text("The checkout was deleted.").is_visible()
        assert page.locator("code.command").all_inner_texts() == commands

    def test_rejected_and_late_deliveries_are_listed(self, generated_host, open_page):
        page = open_page(generated_host(40).url)
        rejected = page.get_by_role("region", name="Rejected webhooks in the last day").inner_text()
        assert "192.0.2.7" in rejected
        assert f"Does the forge use the secret in {generated.SECRET_FILE}?" in rejected
        assert page.get_by_role("region", name="Pushes that waited").get_by_role("link", name="acme/shop").is_visible()


class TestEveryPage:
    @pytest.mark.parametrize("path", PATHS)
    def test_every_look_is_accessible_and_fits(self, scene, open_page, violations, path):
        page = open_page(at(scene, path), ignore_status=path.startswith("/runs/9"))
        page.evaluate(OPEN_DETAILS)
        for width, scheme in LOOKS:
            set_look(page, width, scheme)
            assert violations(page) == [], (width, scheme)
            assert page.evaluate(BEYOND_THE_EDGE, width) == [], (width, scheme)
            assert page.evaluate(SPILLED) == [], (width, scheme)
            assert page.evaluate("document.documentElement.scrollWidth") == width

    def test_a_phone_shows_labels_above_whole_values(self, scene, open_page):
        page = open_page(at(scene, "/runs/{failed}"), width=360)
        for value in page.locator("dd code").all():
            assert value.bounding_box()["height"] < 25, "a commit id is broken"
        label, value = page.locator("dt").first.bounding_box(), page.locator("dd").first.bounding_box()
        assert label["y"] + label["height"] <= value["y"]
        cell = page.locator(".served td").first
        assert cell.evaluate("cell => getComputedStyle(cell, '::before').display") == "block"
        assert cell.evaluate("cell => getComputedStyle(cell, '::before').content") == '"Event"'

    def test_dark_is_dark(self, scene, open_page):
        ground = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
        assert min(open_page(at(scene, "/"), color_scheme="light").evaluate(ground)) > 200
        assert max(open_page(at(scene, "/"), color_scheme="dark").evaluate(ground)) < 50

    def test_the_keyboard_is_enough(self, scene, open_page):
        page = open_page(at(scene, "/"))

        def focused() -> str:
            return page.evaluate("(document.activeElement.innerText || document.activeElement.id || '').trim()")

        def to(text: str) -> None:
            for _ in range(40):
                page.keyboard.press("Tab")
                if focused().split("\n")[0] == text:
                    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                    assert outline == "solid", f"the focus on {text} is invisible"
                    return
            raise AssertionError(f"Tab does not lead to {text}")

        to("Skip to the content")
        assert page.evaluate("document.activeElement.getBoundingClientRect().left") >= 0
        page.keyboard.press("Enter")
        assert page.evaluate("document.activeElement.id") == "main"
        to("acme/billing")
        page.keyboard.press("Enter")
        problem(page, "acme/billing").get_by_text("migration 42 failed").wait_for()
        to("Repository")
        page.keyboard.press("Enter")
        page.wait_for_url("**sort=repository")
        has_rows(page, *sorted(shown_rows(page)))
        assert focused() == "Repository"
        to("acme/billing")
        page.keyboard.press("Enter")
        page.get_by_role("heading", name="acme/billing").wait_for()
        to(str(scene.runs["failed"]))
        page.keyboard.press("Enter")
        page.get_by_role("heading", name=f"acme/billing run {scene.runs['failed']}").wait_for()
        to("q")
        page.keyboard.type("shop")
        page.keyboard.press("Enter")
        has_rows(page, "acme/shop")

    def test_every_function_works_without_javascript(self, scene, open_page):
        page = open_page(at(scene, "/"), java_script_enabled=False)
        problem(page, "acme/billing").locator("summary").click()
        assert problem(page, "acme/billing").get_by_text("migration 42 failed").is_visible()
        state_filter(page, "paused").click()
        assert shown_rows(page) == ["acme/intranet"]
        page.go_back()
        page.get_by_role("searchbox").fill("infra")
        page.get_by_role("button", name="Search").click()
        assert sorted(shown_rows(page)) == ["infra/dns", "infra/monitoring"]
        page.locator("table.overview").get_by_role("columnheader", name="Repository").get_by_role("link").click()
        assert shown_rows(page) == ["infra/dns", "infra/monitoring"]
        row = page.locator("table.overview tr", has_text="infra/monitoring")
        row.locator("summary").click()
        assert row.locator("code.command").inner_text() == "gitops-hook runs infra/monitoring"
        row.locator("th a").click()
        page.locator(".runs summary").first.click()
        assert page.locator("details[open] li").first.is_visible()
        page.goto(at(scene, "/runs/{failed}"))
        assert "migration 42 failed" in page.locator("#log").inner_text()
        page.goto(scene.url)
        page.get_by_role("searchbox").fill(scene.guid)
        page.keyboard.press("Enter")
        page.locator(".became").wait_for()


def test_pictures_for_the_readme(scene, generated_host, open_page, pictures):
    """Take the screenshots. PICTURES=docs keeps them. They show an example host and its usual folder."""
    for name, url in (("overview", generated_host(40).url), ("run", at(scene, "/runs/{failed}"))):
        page = open_page(url, width=1280, height=860)
        if name == "overview":
            problem(page, "acme/billing").locator("summary").click()
        page.evaluate(
            """folder => {
                document.querySelector(".home").textContent = "web1.example.org";
                const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
                while (walk.nextNode()) walk.currentNode.data = walk.currentNode.data.replaceAll(folder, "/srv/gitops");
                document.activeElement.blur();
            }""",
            str(scene.daemon.root),
        )
        picture = pictures / f"{name}.png"
        page.screenshot(path=picture, full_page=name == "run")
        assert picture.stat().st_size > 20_000
