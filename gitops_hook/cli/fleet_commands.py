"""The ``fleet`` command: views of all hosts, and orders to roll-outs. It needs etcd and no daemon."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence

from gitops_hook.cli.messages import EX_NOINPUT, EX_UNAVAILABLE, EX_USAGE
from gitops_hook.cli.parser import Arguments
from gitops_hook.cli.session import load_settings
from gitops_hook.errors import ConfigError, GitopsError
from gitops_hook.fleet.access import open_etcd
from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.keys import EVERY_COMMIT, Have, Keys, Want
from gitops_hook.fleet.messages import EtcdError
from gitops_hook.fleet.operator import Operator, OrderError
from gitops_hook.fleet.overview import FleetState, Member, read_state
from gitops_hook.fleet.rollout import Plan, PlanError, Rollout
from gitops_hook.names import is_valid
from gitops_hook.text import age, escape, rfc3339
from gitops_hook.users import requesting_user

#: Characters of a commit id that people see.
_SHORT = 10
#: The exit status of ``drift`` if a host differs.
_DIFFERS = 1


def fleet(given: Arguments) -> int:
    """Run a view or an order of the fleet."""
    settings = load_settings(given)
    if not settings.fleet:
        raise ConfigError("this host belongs to no fleet: set GITOPS_FLEET")
    action = _ACTIONS[given.action]
    if (action in _ORDERS and not given.repository) or (given.repository and not is_valid(_base(given.repository))):
        raise GitopsError(EX_USAGE, f"fleet {given.action} needs the name of a repository")
    if given.words and given.action not in ("plan", "promote", "halt"):
        raise GitopsError(EX_USAGE, f"fleet {given.action} takes no more words")
    etcd, keys = open_etcd(settings), Keys(settings.fleet)
    try:
        return action(given, etcd, keys)
    except EtcdError as error:
        raise GitopsError(EX_UNAVAILABLE, f"the fleet's etcd does not answer: {error}") from error
    except OrderError as error:
        raise GitopsError(EX_NOINPUT, str(error)) from error
    finally:
        etcd.close()


# -- views ------------------------------------------------------------------------------------------------------------


def _status(given: Arguments, etcd: Etcd, keys: Keys) -> int:
    state = read_state(etcd, keys)
    names = sorted({*state.statuses, *state.rollouts})
    if given.repository:
        wanted = given.repository.lower()
        names = [name for name in names if wanted in (name, _base(name))]
        if not names:
            raise GitopsError(EX_NOINPUT, f"no host of the fleet has {given.repository}")
    if given.json:
        for name in names:
            _print_json(_checkout_as_json(state, name))
    elif given.repository:
        for name in names:
            _print_checkout(state, name)
    else:
        rows = [_checkout_row(state, name) for name in names]
        _print_table(("CHECKOUT", "REQUESTED", "HAVE IT", "ROLL-OUT"), rows)
        print(_moment(state))
    return 0


def _checkout_row(state: FleetState, checkout: str) -> Sequence[str]:
    statuses = state.statuses.get(checkout, {})
    expected = [state.expected(checkout, host) for host in statuses]
    having = sum(have.commit == commit for have, commit in zip(statuses.values(), expected))
    want = state.wants.get(_base(checkout), Want())
    rollout = state.rollouts.get(checkout)
    return (checkout, want.after[:_SHORT] or "-", f"{having} of {len(statuses)}", _stages(rollout) if rollout else "-")


def _stages(rollout: Rollout) -> str:
    parts = []
    for stage in rollout.plan.stages:
        passed = rollout.passed.get(stage.label)
        parts.append(f"{stage}={passed.decision.commit[:_SHORT] if passed else '-'}")
    return " ".join(parts) + (f" HALTED {_halt(rollout)}" if rollout.halt else "")


def _halt(rollout: Rollout) -> str:
    assert rollout.halt
    decision = rollout.halt.decision
    commit = "every commit" if decision.commit == EVERY_COMMIT else decision.commit[:_SHORT]
    return f"({commit}, by {decision.by}" + (f": {decision.reason})" if decision.reason else ")")


def _print_checkout(state: FleetState, checkout: str) -> None:
    want = state.wants.get(_base(checkout))
    if want:
        print(escape(f"{checkout}: {_newest_event(want)}"))
    rollout = state.rollouts.get(checkout)
    if rollout:
        print(escape(f"plan: {_stages(rollout)}"))
    live = {member.name: member for member in state.members}
    rows = []
    for host, have in sorted(state.statuses.get(checkout, {}).items()):
        stage = rollout.plan.stages[rollout.plan.position(live[host].host.stage)].label if rollout else "-"
        note = state.step_reason(checkout, host) if _differs(state, checkout, host) else ""
        rows.append(
            (host, stage, _liveness(live[host]), have.commit[:_SHORT] or "-", have.outcome, age(have.ended), note)
        )
    _print_table(("HOST", "STAGE", "LIVE", "COMMIT", "OUTCOME", "SINCE", "NEXT"), rows)
    print(_moment(state))


def _newest_event(want: Want) -> str:
    via = f", received by {want.via}" if want.via else ""
    if want.renamed:
        return f"a webhook calls the repository {want.renamed}{via}; compare the name with the forge"
    commit = want.after[:_SHORT] or "the tip"
    return f"{commit} of {want.ref or 'several refs'} requested {age(want.received)} ago{via}"


def _moment(state: FleetState) -> str:
    return f"as of {rfc3339(state.moment, 'seconds')}, revision {state.revision}"


def _hosts(given: Arguments, etcd: Etcd, keys: Keys) -> int:
    state = read_state(etcd, keys)
    if given.json:
        for member in state.members:
            _print_json(_member_as_json(member))
        return 0
    rows = [
        (
            member.name,
            _liveness(member),
            ",".join(f"{name}={value}" for name, value in sorted(member.host.labels.items())) or "-",
            str(member.checkouts),
            member.host.version or "-",
        )
        for member in state.members
    ]
    _print_table(("HOST", "LIVE", "LABELS", "CHECKOUTS", "VERSION"), rows)
    return 0


def _drift(given: Arguments, etcd: Etcd, keys: Keys) -> int:
    state = read_state(etcd, keys)
    found = [
        (checkout, host, have)
        for checkout, statuses in sorted(state.statuses.items())
        if not given.repository or given.repository.lower() in (checkout, _base(checkout))
        for host, have in sorted(statuses.items())
        if _differs(state, checkout, host)
    ]
    live = {member.name: member for member in state.members}
    if given.json:
        for checkout, host, have in found:
            _print_json({"checkout": checkout, **_status_as_json(state, checkout, host, have, live[host])})
    else:
        rows = [
            (
                checkout,
                host,
                _liveness(live[host]),
                have.commit[:_SHORT] or "-",
                state.expected(checkout, host)[:_SHORT] or "-",
                have.outcome or "-",
                have.message,
            )
            for checkout, host, have in found
        ]
        _print_table(("CHECKOUT", "HOST", "LIVE", "HAS", "EXPECTED", "OUTCOME", "MESSAGE"), rows)
    return _DIFFERS if found else 0


def _differs(state: FleetState, checkout: str, host: str) -> bool:
    expected = state.expected(checkout, host)
    return bool(expected) and state.statuses[checkout][host].commit != expected


# -- orders -----------------------------------------------------------------------------------------------------------


def _plan(given: Arguments, etcd: Etcd, keys: Keys) -> int:
    operator = Operator(etcd, keys, requesting_user())
    if given.delete:
        operator.delete_plan(given.repository)
        print(f"{given.repository} follows its branch again on every host")
        return 0
    if not given.words:
        print(operator.rollout(given.repository).plan)
        return 0
    try:
        plan = Plan.parse(given.words)
    except PlanError as error:
        raise GitopsError(EX_USAGE, str(error)) from error
    operator.set_plan(given.repository, plan)
    print(f"{given.repository} follows the plan: {plan}")
    return 0


def _promote(given: Arguments, etcd: Etcd, keys: Keys) -> int:
    if len(given.words) != 1:
        raise GitopsError(EX_USAGE, "name the repository and the stage to pass: fleet promote REPO STAGE")
    (stage,) = given.words
    commit = Operator(etcd, keys, requesting_user()).promote(given.repository, stage, given.commit)
    print(f"{given.repository}: stage {stage} has passed {commit}")
    return 0


def _halt_all(given: Arguments, etcd: Etcd, keys: Keys) -> int:
    Operator(etcd, keys, requesting_user()).halt(given.repository, " ".join(given.words))
    print(f"{given.repository} is halted: gitops-hook fleet resume {given.repository}")
    return 0


def _resume(given: Arguments, etcd: Etcd, keys: Keys) -> int:
    ended = Operator(etcd, keys, requesting_user()).resume(given.repository)
    print(f"{given.repository} proceeds; the halt was by {ended.by}" + (f": {ended.reason}" if ended.reason else ""))
    return 0


_ORDERS = (_plan, _promote, _halt_all, _resume)
#: The actions by name.
_ACTIONS: Mapping[str, Callable[[Arguments, Etcd, Keys], int]] = {
    "status": _status,
    "hosts": _hosts,
    "drift": _drift,
    "plan": _plan,
    "promote": _promote,
    "halt": _halt_all,
    "resume": _resume,
}


# -- output -----------------------------------------------------------------------------------------------------------


def _base(checkout: str) -> str:
    """Return the repository of a checkout, without its environment."""
    return checkout.partition("@")[0]


def _liveness(member: Member) -> str:
    if member.is_live:
        return "live"
    return f"offline, seen {age(member.host.seen)}" if member.host.seen else "offline"


def _checkout_as_json(state: FleetState, checkout: str) -> Mapping[str, object]:
    want = state.wants.get(_base(checkout))
    rollout = state.rollouts.get(checkout)
    live = {member.name: member for member in state.members}
    return {
        "checkout": checkout,
        "revision": state.revision,
        "requested": {**want._asdict(), "received": rfc3339(want.received)} if want else None,
        "plan": str(rollout.plan) if rollout else None,
        "passed": {label: stored.decision.commit for label, stored in rollout.passed.items()} if rollout else {},
        "halt": {**rollout.halt.decision._asdict(), "at": rfc3339(rollout.halt.decision.at)}
        if rollout and rollout.halt
        else None,
        "hosts": [
            _status_as_json(state, checkout, host, have, live[host])
            for host, have in sorted(state.statuses.get(checkout, {}).items())
        ],
    }


def _status_as_json(state: FleetState, checkout: str, host: str, have: Have, member: Member) -> Mapping[str, object]:
    return {
        **_member_as_json(member),
        "commit": have.commit,
        "expected": state.expected(checkout, host),
        "outcome": have.outcome,
        "message": have.message,
        "paused": have.paused,
        "ended": rfc3339(have.ended) if have.ended else None,
    }


def _member_as_json(member: Member) -> Mapping[str, object]:
    return {
        "host": member.name,
        "live": member.is_live,
        "seen": rfc3339(member.host.seen) if member.host.seen else None,
        "labels": dict(member.host.labels),
        "version": member.host.version,
    }


def _print_json(row: Mapping[str, object]) -> None:
    print(json.dumps(row, ensure_ascii=False))


def _print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    table = [head, *([escape(cell) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table)]
    for row in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip())
