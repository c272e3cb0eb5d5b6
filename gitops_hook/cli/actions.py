"""What the command line does: sync, pause, resume, add, send, register, audit.

It all works while the daemon is down, but what waits for the daemon: `send`, and `register` for its ping.

Rules:

1. A sync from here is the daemon's own run, by the same code: it stands in the journal, claims what is owed, and the
   script's lock keeps it apart from the daemon's.
2. Settings are written where they live: in the checkout's git config.
"""

from __future__ import annotations

import http.client
import json
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager
from hashlib import sha256
from hmac import new as hmac
from pathlib import Path

from gitops_hook.config import WEBHOOK, Settings
from gitops_hook.errors import GitopsError
from gitops_hook.github.client import ApiError, Client, is_at, read_token
from gitops_hook.github.webhooks import Hooks, Missed, Registration
from gitops_hook.journal.reader import JournalReader
from gitops_hook.model import Run
from gitops_hook.names import is_valid, may_clone, name_in_url
from gitops_hook.outcomes import BY_NAME, outcome_of
from gitops_hook.secrets import read_secrets
from gitops_hook.sync.checkouts import Checkout, Checkouts
from gitops_hook.sync.dispatcher import Dispatcher
from gitops_hook.sync.runner import GRACE

#: Seconds of silence after which a person wonders what is going on.
_LONG = 10
#: Seconds between looks at the journal.
_LOOK = 0.1


def sync(
    dispatcher: Dispatcher, repositories: Sequence[str], trigger: str, at_once: int, tell: Callable[[int, Run], None]
) -> int:
    """Sync each of `repositories`, `at_once` at a time; returns the exit status of the worst outcome.

    `trigger` is why. `tell` hears how many have ended, and how the last of them did. A signal that is to end us ends
    the runs in hand, whose ends are recorded, and raises SystemExit.
    """
    worst = BY_NAME["updated"]
    runs: list[Future[Run]] = []
    with _signals_raise(), ThreadPoolExecutor(at_once) as pool:
        try:
            for name in repositories:
                runs.append(pool.submit(dispatcher.run_now, name, trigger))
            for number, future in enumerate(runs, 1):
                run = future.result()
                tell(number, run)
                worst = max(worst, outcome_of(run.outcome), key=lambda outcome: outcome.rank)
        except SystemExit:
            pool.shutdown(wait=False, cancel_futures=True)
            dispatcher.stop()
            dispatcher.terminate()
            # One that was about to start its script is ended at the second time.
            while wait([future for future in runs if not future.cancelled()], GRACE + 1).not_done:
                dispatcher.terminate()
            raise
    return worst.exit


@contextmanager
def _signals_raise() -> Iterator[None]:
    """Have the first signal that is to end us raise SystemExit, and those after it do nothing.

    One that was ignored before, as under nohup(1), stays so.
    """
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    heard = [number for number, handler in before.items() if handler is not signal.SIG_IGN]

    def end(number: int, frame: object) -> None:
        for other in heard:
            signal.signal(other, lambda number, frame: None)
        raise SystemExit(128 + number)

    for number in heard:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in heard:
            signal.signal(number, before[number])


def pause(checkout: Checkout) -> None:
    """Let nothing move in the checkout until `resume`."""
    _git(checkout.path, "config", "gitops.paused", "true")


def resume(checkout: Checkout) -> None:
    """End a pause; the caller syncs."""
    done = _run_git(checkout.path, "config", "--unset-all", "gitops.paused")
    if done.returncode not in (0, 5):  # 5: it was not set
        raise GitopsError(77, f"git config in {checkout.path}: {done.stderr.strip()}")


def add(root: Path, repository: str, url: str, *, branch: str | None, deploy: str | None) -> Path:
    """Clone `repository` from `url` under `root`, or adopt the checkout that is there, and set what is given."""
    if not is_valid(repository) or "/" not in repository:
        raise GitopsError(64, f"`{repository}` is not OWNER/NAME")
    known = Checkouts(root).find(repository)
    path = known.path if known else root / repository
    if not known:
        path.parent.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            ["git", "clone", "--quiet", *(["--branch", branch] if branch else []), "--", url, path],
            stdin=subprocess.DEVNULL,
            check=False,
        )
        if done.returncode:
            raise GitopsError(75, f"{url} cannot be cloned to {path}")
    for key, value in (("branch", branch), ("deploy", deploy)):
        if value is not None:
            _git(path, "config", f"gitops.{key}", value)
    return path


def send(settings: Settings, secret: bytes, repository: str, branch: str) -> tuple[str, int, str]:
    """Deliver a signed test push to the local daemon, as GitHub would; returns GUID, status and answer.

    It names no commit, so that the script asks the remote what is true.
    """
    body = json.dumps(
        {
            "ref": f"refs/heads/{branch}",
            "repository": {"name": repository.rpartition("/")[2], "full_name": repository, "default_branch": branch},
            "pusher": {"name": "gitops-hook send"},
        }
    ).encode()
    guid = str(uuid.uuid4())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": "gitops-hook send",
        "X-GitHub-Delivery": guid,
        "X-GitHub-Event": "push",
        "X-Hub-Signature-256": "sha256=" + hmac(secret, body, sha256).hexdigest(),
    }
    with closing(http.client.HTTPConnection(*settings.listen.connectable, timeout=30)) as connection:
        try:
            connection.request("POST", WEBHOOK, body, headers)
            response = connection.getresponse()
            return guid, response.status, response.read().decode("utf-8", "replace").strip()
        except OSError as error:
            raise GitopsError(69, f"no daemon answers at {settings.listen}: {error.strerror or error}") from None
        except http.client.HTTPException:
            raise GitopsError(69, f"what answers at {settings.listen} is not gitops-hook") from None


def newest_secret(settings: Settings) -> bytes:
    """The secret that the daemon tries first; raises `GitopsError` where it cannot be read."""
    if settings.webhook_secret:
        return settings.webhook_secret.encode()
    try:
        secrets = read_secrets(settings.webhook_secret_file) if settings.webhook_secret_file else {}
    except OSError as error:
        raise GitopsError(77, f"{error.filename}: {error.strerror}") from None
    if not secrets:
        raise GitopsError(78, "there is no secret: set GITHUB_WEBHOOK_SECRET_FILE or GITHUB_WEBHOOK_SECRET")
    return next(iter(secrets.values()))


def wait_for(journal: JournalReader, guid: str, timeout: float) -> Run | None:
    """The run that served a delivery, once it has ended; None if none has within `timeout` seconds."""
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        for delivery in journal.deliveries(guid):
            run = journal.run(delivery.run) if delivery.run else None
            if run and run.outcome:
                return run
        time.sleep(_LOOK)
    return None


def client(settings: Settings) -> Client:
    """Whoever asks GitHub, with the token that is set; raises `GitopsError` where there is none."""
    token = read_token(settings.token_file)
    if not token:
        where = settings.token_file or "the file that GITHUB_TOKEN_FILE names"
        raise GitopsError(78, f"there is no token for GitHub's API: write one to {where}; docs/github.md tells of it")
    return Client(settings.api_url, token, sleep=_wait)


def _wait(seconds: float) -> None:
    """Sleep, and say so where a person would wonder."""
    if seconds > _LONG:
        print(f"GitHub's rate limit: waiting for {seconds:.0f} s", file=sys.stderr)
    time.sleep(seconds)


def at_forge(settings: Settings) -> tuple[list[str], list[str]]:
    """The checkouts under the root whose origin is at the forge, as that calls them; and the names of the others."""
    checkouts, there, elsewhere = Checkouts(settings.root), [], []
    for name in checkouts:
        checkout = checkouts.find(name)
        origin = checkout.settings.get("origin", "") if checkout else ""
        called = (name_in_url(origin) or "") if is_at(settings.api_url, origin) else ""
        if "/" in called:
            there.append(called)
        else:
            elsewhere.append(name)
    return there, elsewhere


def register(
    act: Callable[[str], Registration], targets: Sequence[str], tell: Callable[[int, Registration], None]
) -> bool:
    """Have `act` see to each of `targets`; returns whether all is well.

    It ends early where the next would meet the same: the forge cannot be asked, or its pings do not arrive.
    """
    well = True
    for number, target in enumerate(targets, 1):
        again = True
        try:
            done = act(target)
        except ApiError as error:
            done = Registration(target, "failed", trouble=str(error))
            again = error.http not in (0, 401) and error.again is None
        tell(number, done)
        well = well and not done.trouble
        if done.trouble and (done.change != "failed" or not again):
            break
    return well


def audit(
    hooks: Hooks, settings: Settings, only: Sequence[str], *, redeliver: bool, tell: Callable[[str], None]
) -> list[Missed]:
    """The pushes that did not arrive, of all hooks that ever have reached us, or of `only` some repositories.

    `tell` hears of each hook that could not be asked about. Raises `GitopsError` where there is none to ask about.
    """
    checkouts, wanted = Checkouts(settings.root), {name.lower() for name in only}
    known = {hook.target.lower() for hook in hooks.known()}
    unknown = [name for name in only if not known & {name.lower(), name.lower().rpartition("/")[0]}]
    if unknown or not known:
        whose = f" of {', '.join(unknown)}" if unknown else ""
        raise GitopsError(
            66, f"no webhook{whose} has reached this host yet, so there is none to ask: gitops-hook register"
        )
    missed: list[Missed] = []

    def is_kept(name: str) -> bool:
        if wanted and name.lower() not in wanted:
            return False
        return checkouts.find(name) is not None or may_clone(name, settings.clone)

    for hook in hooks.known():
        if wanted and "/" in hook.target and hook.target.lower() not in wanted:
            continue
        try:
            missed += hooks.missed(hook, is_kept, redeliver=redeliver)
        except ApiError as error:
            tell(f"hook {hook.hook} of {hook.target} cannot be asked about: {error}")
            if error.http == 404:
                tell(f"if there is no such hook any more: gitops-hook unregister {hook.target}")
            if error.http in (0, 401):
                break  # nor can the others
    return missed


def _git(path: Path, *arguments: str) -> None:
    done = _run_git(path, *arguments)
    if done.returncode:
        raise GitopsError(77, f"git {arguments[0]} in {path}: {done.stderr.strip()}")


def _run_git(path: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["git", "-C", path, *arguments], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False
    )
