"""One host's part in roll-outs: it carries out the steps that `rollout` decides.

    no turn: gitops.approved is the deployed commit, or `hold`     sweeps and manual runs change nothing
        | the host is at the head of the line
        v
    turn: gitops.approved is the commit of the stage, and a delivery deploys it
        | the run that claimed the delivery has ended
        v
    end: one transaction writes the status and gives up the turn, and halts the commit if it failed

Rules:

1. The journal names a deploy before ``gitops.approved`` permits it. After a crash, the next process withdraws the
   permission before any run starts, and enters the line again.
2. One thread acts, the member's. Other threads only note what has changed.
3. After a transaction of its own, the thread waits until the view shows it. An older view may still show the turn. A
   wiped cluster counts its revisions from the start, so this applies within one life only.
4. A cluster that was wiped has no plans. The hosts restore them from their journals before they evaluate anything, so
   a checkout never moves past its plan. Only a plan that an operator deleted releases its checkouts.
5. A run that could not reach the forge is no verdict on the commit: the host leaves the line and enters it later.
6. A pin that ends with the next push ends with the deploy of a newer commit. An earlier end would deploy the commit
   again that the operator rolled back.
"""

from __future__ import annotations

import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Sequence

from gitops_hook.errors import JournalError
from gitops_hook.fleet.etcd import Etcd
from gitops_hook.fleet.follow import Follower
from gitops_hook.fleet.keys import Decision, Have, Keys, load
from gitops_hook.fleet.messages import get
from gitops_hook.fleet.rollout import (
    IN_PLACE,
    Action,
    Rollout,
    Stage,
    Step,
    Stored,
    Transaction,
    end_turn,
    leave_turn,
    next_step,
    pass_stage,
    passing,
    remember,
    restoration,
    take_turn,
)
from gitops_hook.fleet.statuses import Statuses
from gitops_hook.journal.fleet import FleetJournal, HeldCheckout
from gitops_hook.log import log
from gitops_hook.model import Claim, Delivery, Run
from gitops_hook.outcomes import BAD, settles, severity_of
from gitops_hook.sync.checkouts import Checkout, Checkouts, position
from gitops_hook.sync.git import is_ancestor
from gitops_hook.sync.holds import hold_in_force, unpin
from gitops_hook.sync.settings import write_setting

#: The value of ``gitops.approved`` that permits no move and no deploy.
HOLD = "hold"
#: Seconds between two looks at every planned checkout, for what no event announces.
_LOOK = 15.0
#: The first and the longest wait before the host enters the line again, in seconds.
_FIRST_WAIT, _LONGEST_WAIT = 5.0, 900.0
#: Reads in one transaction, of the 128 operations that etcd takes.
_READS = 100
#: Plans in one transaction: each has up to two writes.
_RESTORED = 60
#: Attempts to end a turn while others change the halt.
_ATTEMPTS = 5


class Deployer:
    """The roll-outs of this host's checkouts."""

    def __init__(
        self,
        etcd: Etcd,
        keys: Keys,
        host: str,
        *,
        follower: Follower,
        journal: FleetJournal,
        checkouts: Checkouts,
        statuses: Statuses,
        label: str,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """Start with no roll-out. `label` is the host's label `stage`, or ""."""
        self._etcd = etcd
        self._keys = keys
        self._host = host
        self._follower = follower
        self._journal = journal
        self._checkouts = checkouts
        self._statuses = statuses
        self._label = label
        self._clock = clock
        #: Run what the journal has pending for a checkout; set before the first tick.
        self.notify: Callable[[str], None] = lambda checkout: None
        #: Called when there is work for `tick`.
        self.wake: Callable[[], None] = lambda: None
        # Guards the next two. The follower and the workers add to them, the member's thread takes all.
        self._lock = threading.Lock()
        self._changed: set[str] = {""}
        self._ended: list[tuple[Run, set[str], Have]] = []
        # The rest belongs to the member's thread.
        self._held: dict[str, HeldCheckout] = {}
        self._ending: dict[str, tuple[Have, Decision | None]] = {}
        self._not_before: dict[str, float] = {}
        self._failures: dict[str, int] = {}
        self._due: dict[str, float] = {}
        self._barriers: dict[str, tuple[str, int]] = {}  # the life and the revision of the last own transaction
        self._next_look = 0.0
        self._has_old_turns = True

    def withdraw_permissions(self) -> None:
        """Hold each checkout whose deploy an earlier process began. Call it before any run starts."""
        self._held = self._journal.held()
        for name, held in list(self._held.items()):
            if held.commit:
                self._hold(name)
                self._keep(held._replace(commit="", guid=""))

    def restore_plans(self) -> None:
        """Write the plans again that a wiped cluster lost. Any thread may call it. Raises EtcdError, JournalError."""
        held = self._journal.held()
        operations = {name: restoration(self._keys, name, entry.plan) for name, entry in sorted(held.items())}
        wanted = [(name, operation) for name, operation in operations.items() if operation]
        for start in range(0, len(wanted), _RESTORED):
            chunk = wanted[start : start + _RESTORED]
            answer = self._etcd.transact([], [operation for _, operation in chunk])
            for (name, _), result in zip(chunk, answer.results):
                if result.succeeded:
                    log.warning("plan restored: the fleet's etcd was wiped", repository=name)

    # -- other threads ------------------------------------------------------------------------------------------------

    def changed(self, checkouts: set[str]) -> None:
        """Note that the view of these checkouts changed; "" is every checkout."""
        with self._lock:
            self._changed |= checkouts
        self.wake()

    def ended(self, run: Run, claim: Claim, have: Have) -> None:
        """Note that a run ended, with the status after it."""
        with self._lock:
            self._ended.append((run, {delivery.guid for delivery in claim.served}, have))
            self._changed.add(run.repository.lower())
        self.wake()

    def ignores_pushes(self, checkout: str) -> bool:
        """Return True if the checkout waits for the decisions of an earlier stage, or must not be cloned to the tip."""
        rollout = self._rollout(checkout)
        if not rollout:
            return False
        # By its own label, not by the view: without a lease the host is not in the view, and would lose the push.
        is_first = rollout.plan.position(self._label) == 0
        return not is_first or not self._checkouts.find(checkout)

    # -- the member's thread ------------------------------------------------------------------------------------------

    def tick(self, lease: int) -> None:
        """Carry out what is due. Raises EtcdError and JournalError; what was not done stays due."""
        with self._lock:
            ended, self._ended = self._ended, []
            changed, self._changed = self._changed, set()
        for run, guids, have in ended:
            self._judge(run, guids, have)
        now = self._clock()
        if now >= self._next_look:
            changed.add("")
            self._next_look = now + _LOOK
        with self._follower.lock:
            planned = set(self._follower.view.planned)
        names = {*planned, *self._held} if "" in changed else changed & {*planned, *self._held}
        names |= {name for name, due in self._due.items() if due <= now} | set(self._ending)
        for name in sorted(names):
            try:
                self._evaluate(name, lease)
            except OSError as error:
                log.error("a roll-out cannot change its checkout", repository=name, reason=error)
                self._due[name] = now + _LOOK
            except Exception:
                with self._lock:
                    self._changed.add(name)
                raise
        self._has_old_turns = self._has_old_turns and not self._follower.is_connected

    def _evaluate(self, name: str, lease: int) -> None:
        self._due.pop(name, None)
        rollout, revision = self._rollout(name), self._follower.view.revision
        if name in self._ending and not self._end(name, rollout):
            return
        life, barrier = self._barriers.get(name, ("", 0))
        is_behind = life == self._follower.life and revision < barrier
        if is_behind or not self._follower.is_connected:
            return
        checkout = self._checkouts.find(name)
        if not rollout:
            self._release(name, checkout)
        elif checkout:
            self._adopt(name, rollout, checkout)
            self._act(name, rollout, checkout, lease)

    def _act(self, name: str, rollout: Rollout, checkout: Checkout, lease: int) -> None:
        held = self._held[name]
        if held.commit:
            return  # a deploy is under way
        have, tip = self._statuses.have(name), position(checkout).upstream or ""
        if have.paused and _ends_pin(checkout, rollout.target(rollout.stage_of(self._host), tip), self._clock()):
            have = have._replace(paused=False)
        step = next_step(rollout, self._host, tip, have)
        is_in_line = any(self._host in [turn.host for turn in turns] for turns in rollout.turns.values())
        if is_in_line and (self._has_old_turns or step.action in (Action.DONE, Action.HOLD)):
            self._apply(name, leave_turn(self._keys, rollout, self._host))
        elif step.action is Action.QUEUE and self._clock() >= self._not_before.get(name, 0):
            self._apply(name, take_turn(self._keys, rollout, self._host, step.commit, lease))
        elif step.action is Action.QUEUE:
            self._due[name] = self._not_before[name]
        elif step.action is Action.DEPLOY:
            self._begin(held, checkout, step)
        elif step.action is Action.DONE:
            self._pass(name, rollout, have)

    # -- deploys ------------------------------------------------------------------------------------------------------

    def _begin(self, held: HeldCheckout, checkout: Checkout, step: Step) -> None:
        """Permit the commit, and have it deployed."""
        begun = held._replace(commit=step.commit, guid=str(uuid.uuid4()))
        delivery = Delivery(begun.guid, "rollout", self._clock(), held.checkout, "", after=step.commit)
        self._keep(begun)
        try:
            _approve(checkout, step.commit, ends_pin=_ends_pin(checkout, step.commit, self._clock()))
            self._keep(begun, [delivery])
        except (OSError, JournalError):
            self._hold(held.checkout)
            self._held[held.checkout.lower()] = held
            raise
        log.info("deploy permitted", repository=held.checkout, commit=step.commit, delivery=begun.guid)
        self.notify(held.checkout)

    def _judge(self, run: Run, guids: set[str], have: Have) -> None:
        """Decide how a turn ends whose run has ended."""
        name = run.repository.lower()
        held = self._held.get(name)
        if not held or not held.commit or held.guid not in guids:
            return
        halt = None
        if have.commit == held.commit and have.outcome in IN_PLACE:
            self._failures.pop(name, None)
        else:
            self._hold(name)
            if settles(have.outcome) and severity_of(have.outcome) == BAD:
                reason = f"{have.outcome}: {have.message}" if have.message else have.outcome
                halt = Decision(held.commit, self._host, round(self._clock(), 3), reason, have.outcome)
            failures = self._failures[name] = self._failures.get(name, 0) + 1
            self._not_before[name] = self._clock() + min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (failures - 1))
        self._ending[name] = (have, halt)

    def _end(self, name: str, rollout: Rollout | None) -> bool:
        """End a turn in etcd, however often others change the halt meanwhile; return whether it has ended."""
        have, halt = self._ending[name]
        for _ in range(_ATTEMPTS):
            if not rollout:
                break
            answer = self._apply(name, end_turn(self._keys, rollout, self._host, have, halt))
            if answer:
                self._statuses.written(name, have)
                break
            pair = self._etcd.get(self._keys.halt(name))
            decision = load(Decision, pair.value) if pair else None
            rollout = rollout._replace(halt=Stored(decision, pair.mod_revision) if pair and decision else None)
        else:
            return False
        if halt:
            log.error("commit halted", repository=name, commit=halt.commit, reason=halt.reason)
        del self._ending[name]
        self._keep(self._held[name]._replace(commit="", guid=""))
        return True

    def _pass(self, name: str, rollout: Rollout, have: Have) -> None:
        """Decide that this host's stage has passed, if its hosts have proved the commit."""
        stage = rollout.stage_of(self._host)
        passed = rollout.passed.get(stage.label)
        if rollout.line(stage) or (passed and passed.decision.commit == have.commit):
            return
        found = passing(rollout, stage, self._statuses_of(rollout, stage))
        now = self._clock()
        if found.commit and found.due > now:
            self._due[name] = found.due
        elif found.commit:
            decision = Decision(found.commit, self._host, round(now, 3))
            if self._apply(name, pass_stage(self._keys, rollout, stage, decision)):
                log.info("stage passed", repository=name, stage=stage.label, commit=found.commit)

    def _statuses_of(self, rollout: Rollout, stage: Stage) -> dict[str, Have]:
        found = {}
        members = rollout.members(stage)
        for start in range(0, len(members), _READS):
            chunk = members[start : start + _READS]
            answer = self._etcd.transact([], [get(self._keys.have(host, rollout.checkout)) for host in chunk])
            for host, pairs in zip(chunk, answer.results):
                have = load(Have, pairs[0].value) if pairs else None
                if have:
                    found[host] = have
        return found

    def _apply(self, name: str, transaction: Transaction) -> bool:
        """Apply a transaction; the next step waits until the view shows it."""
        life = self._follower.life
        answer = self._etcd.transact(transaction.compare, transaction.then)
        # A deletion of an absent key makes no event, so the view would never show it.
        if answer.succeeded and any(result != 0 for result in answer.results):
            self._barriers[name] = (life, answer.revision)
        return answer.succeeded

    # -- held checkouts -----------------------------------------------------------------------------------------------

    def _adopt(self, name: str, rollout: Rollout, checkout: Checkout) -> None:
        """Hold a checkout at the commit that it has, when it gets a plan."""
        plan = remember(rollout)
        held = self._held.get(name)
        if not held:
            _approve(checkout, position(checkout).deployed or HOLD)
            log.info("checkout follows a plan", repository=name, plan=rollout.plan)
        if not held or held.plan != plan:
            self._keep((held or HeldCheckout(name, plan))._replace(plan=plan))

    def _release(self, name: str, checkout: Checkout | None) -> None:
        """Let a checkout follow its branch again, when its plan is gone."""
        if name not in self._held:
            return
        if checkout:
            _approve(checkout, "")
        self._journal.release(name, [Delivery(str(uuid.uuid4()), "rollout", self._clock(), name, "")])
        del self._held[name]
        log.info("checkout follows its branch again", repository=name)
        self.notify(name)

    def _hold(self, name: str) -> None:
        checkout = self._checkouts.find(name)
        try:
            if checkout:
                _approve(checkout, HOLD)
        except OSError as error:
            log.error("a roll-out cannot hold its checkout", repository=name, reason=error)

    def _keep(self, held: HeldCheckout, deliveries: Sequence[Delivery] = ()) -> None:
        self._journal.hold(held, deliveries)
        self._held[held.checkout.lower()] = held

    def _rollout(self, name: str) -> Rollout | None:
        with self._follower.lock:
            return self._follower.view.rollout(name)


def _ends_pin(checkout: Checkout, commit: str, now: float) -> bool:
    """Return True if the checkout has a pin that ends with the next push, and `commit` was pushed after it was set."""
    hold = hold_in_force(checkout.settings, now)
    if not commit or not hold or not hold.until_push:
        return False
    try:
        return not is_ancestor(checkout.path, commit, checkout.settings["pintip"])
    except subprocess.SubprocessError:
        return False


def _approve(checkout: Checkout, value: str, *, ends_pin: bool = False) -> None:
    """Set ``gitops.approved``, or unset it, and then remove the pin if `ends_pin`. Raises OSError if git cannot."""
    try:
        write_setting(checkout.path, "approved", value or None)
        if ends_pin:
            unpin(checkout.path)
    except ValueError as error:
        raise OSError(str(error)) from None
