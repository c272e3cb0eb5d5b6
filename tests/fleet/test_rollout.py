"""The decisions of a roll-out, as tables."""

from __future__ import annotations

import shlex

import pytest
from documents import code_blocks

from gitops_hook.fleet.keys import EVERY_COMMIT, Decision, Have, Host, Keys, Want, dump, load
from gitops_hook.fleet.rollout import (
    Action,
    Passing,
    Plan,
    PlanError,
    Rollout,
    Stage,
    Step,
    Stored,
    Turn,
    next_step,
    passing,
)

NEW, OLD, OTHER = "a" * 40, "b" * 40, "c" * 40
PLAN = Plan.parse(["canary:1", "web:50%,wait=2m", "rest"])
CANARY, WEB, REST = PLAN.stages
HOSTS = {"c1": "canary", "c2": "canary", "w1": "web", "w2": "web", "w3": "web", "r1": "", "r2": "eu"}


def rollout(**fields) -> Rollout:
    return Rollout("acme/site", PLAN, HOSTS, {}, {}, None)._replace(**fields)


def passed(**stages: str) -> dict[str, Stored]:
    return {stage: Stored(Decision(commit), 7) for stage, commit in stages.items()}


def line(stage: str, *hosts: str) -> dict[str, list[Turn]]:
    return {stage: [Turn(host, NEW, number) for number, host in enumerate(hosts, 10)]}


def have(commit: str, outcome: str = "updated", ended: float = 0.0, **fields) -> Have:
    return Have(commit, outcome, ended=ended, **fields)


# -- plans ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "stages"),
    [
        ("rest", [Stage("rest", "100%", 0)]),
        ("canary:1 rest:3", [Stage("canary", "1", 0), Stage("rest", "3", 0)]),
        (
            "canary:1 web:25%,wait=2m rest",
            [Stage("canary", "1", 0), Stage("web", "25%", 120), Stage("rest", "100%", 0)],
        ),
        (
            "a,wait=90 b:007,wait=1h rest,wait=5s",
            [Stage("a", "100%", 90), Stage("b", "7", 3600), Stage("rest", "100%", 5)],
        ),
    ],
)
def test_a_plan_is_read_and_written(text: str, stages: list[Stage]) -> None:
    plan = Plan.parse(text.split())
    assert list(plan.stages) == stages
    assert Plan.parse(str(plan).split()) == plan
    assert Plan.load(plan.dump()) == plan


def test_the_documented_plan() -> None:
    (command,) = code_blocks("docs/fleet.md", "Roll-outs", "sh")
    program, group, verb, repository, *stages = shlex.split(command)
    assert (program, group, verb, repository) == ("gitops-hook", "fleet", "plan", "acme/site")
    assert str(Plan.parse(stages)) == "canary:1 web:25%,wait=120s rest"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "the last stage must be `rest`"),
        ("canary:1", "the last stage must be `rest`"),
        ("rest canary", "the last stage must be `rest`"),
        ("web web rest", "named twice"),
        ("web:0 rest", "a number of hosts"),
        ("web:101% rest", "from 1% to 100%"),
        ("web:-1 rest", "a number of hosts"),
        ("web:\u0661 rest", "a number of hosts"),
        ("web: rest", "a number of hosts"),
        ("Web rest", "label"),
        ("web,wait=soon rest", "wait=NUMBER"),
        ("web,pause=5 rest", "wait=NUMBER"),
    ],
)
def test_a_plan_that_cannot_be_read_names_the_reason(text: str, reason: str) -> None:
    with pytest.raises(PlanError, match=reason):
        Plan.parse(text.split())


@pytest.mark.parametrize(
    "stored", [b"", b"[]", b"{}", b'{"stages":[]}', b'{"stages":["web"]}', b'{"stages":7}', b"\xff"]
)
def test_an_invalid_stored_plan(stored: bytes) -> None:
    assert Plan.load(stored) is None


@pytest.mark.parametrize(
    ("at_once", "hosts", "limit"),
    [("1", 9, 1), ("5", 3, 5), ("25%", 8, 2), ("25%", 9, 3), ("1%", 9, 1), ("25%", 0, 1), ("100%", 9, 9)],
)
def test_a_share_is_rounded_up_to_at_least_one(at_once: str, hosts: int, limit: int) -> None:
    assert Stage("web", at_once).limit(hosts) == limit


def test_each_host_has_one_stage() -> None:
    assert {host: rollout().stage_of(host).label for host in HOSTS} == {
        "c1": "canary", "c2": "canary", "w1": "web", "w2": "web", "w3": "web", "r1": "rest", "r2": "rest",
    }  # fmt: skip


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        Want("acme/site", "refs/heads/main", OLD, NEW, "guid", 1.5, "ada", "h1"),
        Host({"stage": "web"}, "0.2", 3.0),
        Have(NEW, "updated", 5, "guid", 9, 2.0, "ü", True),
        Decision(NEW, "c1", 4.0, "it failed"),
        Decision(),
    ],
)
def test_values_are_stored_and_read(value) -> None:
    assert load(type(value), dump(value)) == value


def test_a_value_of_a_later_version_is_read_and_a_wrong_type_is_not() -> None:
    assert load(Have, b'{"commit":"x","later":1,"run":"seven","paused":1,"ended":3}') == Have("x", ended=3)
    assert load(Host, b'{"labels":{"stage":5}}') == Host()
    for broken in (b"", b"null", b"[1]", b"\xff"):
        assert load(Have, broken) is None


def test_names_of_keys_are_in_lower_case() -> None:
    keys = Keys("prod")
    assert keys.want("Acme/Site") == "/gitops-hook/prod/w/want/acme/site"
    assert keys.turn("Acme/Site@Blue", "web", "h1") == "/gitops-hook/prod/w/turn/acme/site@blue/web/h1"
    assert keys.status_of(keys.have("h1", "Acme/Site")) == ("h1", "acme/site")


# -- the next step of a host --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("case", "state", "host", "status", "step"),
    [
        ("the canary needs a place", {}, "c1", have(OLD), Step(Action.QUEUE, NEW)),
        ("the canary has the tip", {}, "c1", have(NEW), Step(Action.DONE, NEW)),
        ("the canary is at the head", {"turns": line("canary", "c1", "c2")}, "c1", have(OLD), Step(Action.DEPLOY, NEW)),
        (
            "the canary is second",
            {"turns": line("canary", "c2", "c1")},
            "c1",
            have(OLD),
            Step(Action.WAIT, NEW, "1 hosts of stage canary are ahead"),
        ),
        (
            "without approval nothing moves",
            {},
            "w1",
            have(OLD),
            Step(Action.HOLD, "", "stage canary has passed no commit"),
        ),
        (
            "the approval of another stage is none",
            {"passed": passed(canary=NEW)},
            "r1",
            have(OLD),
            Step(Action.HOLD, "", "stage web has passed no commit"),
        ),
        ("an approved commit", {"passed": passed(canary=OTHER)}, "w1", have(OLD), Step(Action.QUEUE, OTHER)),
        (
            "half of three hosts are two",
            {"passed": passed(canary=NEW), "turns": line("web", "w1", "w2", "w3")},
            "w2",
            have(OLD),
            Step(Action.DEPLOY, NEW),
        ),
        (
            "the third waits",
            {"passed": passed(canary=NEW), "turns": line("web", "w1", "w2", "w3")},
            "w3",
            have(OLD),
            Step(Action.WAIT, NEW, "2 hosts of stage web are ahead"),
        ),
        (
            "a halted commit",
            {"halt": Stored(Decision(NEW, "c2", 0, "deploy-failed"), 3), "turns": line("canary", "c1")},
            "c1",
            have(OLD),
            Step(Action.HOLD, NEW, "halted by c2: deploy-failed"),
        ),
        (
            "a newer commit than the halted one",
            {"halt": Stored(Decision(OTHER), 3)},
            "c1",
            have(OLD),
            Step(Action.QUEUE, NEW),
        ),
        (
            "an operator's halt is for every commit",
            {"halt": Stored(Decision(EVERY_COMMIT, "ada"), 3)},
            "c1",
            have(OLD),
            Step(Action.HOLD, NEW, "halted by ada"),
        ),
        (
            "a halt does not concern a host that is done",
            {"halt": Stored(Decision(NEW), 3)},
            "c1",
            have(NEW),
            Step(Action.DONE, NEW),
        ),
        ("a deploy of the commit that failed", {}, "c1", have(NEW, "deploy-failed"), Step(Action.QUEUE, NEW)),
        (
            "held at the approved commit",
            {"passed": passed(canary=NEW)},
            "w1",
            have(NEW, "held"),
            Step(Action.DONE, NEW),
        ),
        (
            "a paused checkout",
            {"passed": passed(canary=NEW)},
            "w1",
            have(OLD, "paused", paused=True),
            Step(Action.HOLD, NEW, "an operator paused or pinned the checkout on this host"),
        ),
        (
            "a host without a lease",
            {"hosts": {}},
            "c1",
            have(OLD),
            Step(Action.HOLD, "", "this host's lease has ended"),
        ),
        ("a host without any run", {"passed": passed(canary=NEW)}, "w1", Have(), Step(Action.QUEUE, NEW)),
    ],
    ids=lambda value: value if isinstance(value, str) and " " in value else "",
)
def test_the_next_step(case: str, state: dict, host: str, status: Have, step: Step) -> None:
    assert next_step(rollout(**state), host, NEW, status) == step


def test_a_canary_whose_branch_is_not_known_holds() -> None:
    assert next_step(rollout(), "c1", "", have(OLD)).action is Action.HOLD


# -- when a stage has passed --------------------------------------------------------------------------------------------

ALL_WEB = {"w1": have(NEW, ended=5), "w2": have(NEW, "held", ended=9), "w3": have(NEW, "unchanged", ended=7)}


@pytest.mark.parametrize(
    ("case", "state", "stage", "statuses", "expected"),
    [
        (
            "all canaries have the tip",
            {},
            CANARY,
            {"c1": have(NEW, ended=3), "c2": have(NEW, ended=4)},
            Passing(NEW, 4),
        ),
        (
            "canaries differ",
            {},
            CANARY,
            {"c1": have(NEW), "c2": have(OLD)},
            Passing(reason=f"c2 has {OLD[:10]} (updated)"),
        ),
        (
            "a canary that is held is not at the tip",
            {},
            CANARY,
            {"c1": have(OLD, "held")},
            Passing(reason=f"c1 has {OLD[:10]} (held)"),
        ),
        ("a canary without the checkout does not count", {}, CANARY, {"c1": have(NEW)}, Passing(NEW, 0)),
        ("no canary lives", {}, CANARY, {}, Passing(reason="stage canary has no live host with this checkout")),
        (
            "the only canary is paused",
            {},
            CANARY,
            {"c1": have(NEW, paused=True)},
            Passing(reason="stage canary has no live host with this checkout"),
        ),
        (
            "a paused canary beside another",
            {},
            CANARY,
            {"c1": have(OLD, paused=True), "c2": have(NEW)},
            Passing(NEW, 0),
        ),
        (
            "a canary failed",
            {},
            CANARY,
            {"c1": have(NEW), "c2": have(NEW, "deploy-failed")},
            Passing(reason=f"c2 has {NEW[:10]} (deploy-failed)"),
        ),
        (
            "a halted commit does not pass",
            {"halt": Stored(Decision(NEW, "c1"), 2)},
            CANARY,
            {"c1": have(NEW)},
            Passing(reason="halted by c1"),
        ),
        (
            "it has passed",
            {"passed": passed(canary=NEW)},
            CANARY,
            {"c1": have(NEW)},
            Passing(reason="it has passed already"),
        ),
        ("a stage waits after its last deploy", {"passed": passed(canary=NEW)}, WEB, ALL_WEB, Passing(NEW, 9 + 120)),
        (
            "a newer approval",
            {"passed": passed(canary=OTHER)},
            WEB,
            ALL_WEB,
            Passing(reason=f"w1 has {NEW[:10]} (updated)"),
        ),
        ("no approval", {}, WEB, ALL_WEB, Passing(reason=f"w1 has {NEW[:10]} (updated)")),
        (
            "a dead host is left out",
            {"passed": passed(canary=NEW), "hosts": {"w1": "web", "c1": "canary"}},
            WEB,
            {**ALL_WEB, "w2": have(OLD)},
            Passing(NEW, 5 + 120),
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_passing(case: str, state: dict, stage: Stage, statuses: dict[str, Have], expected: Passing) -> None:
    assert passing(rollout(**state), stage, statuses) == expected
