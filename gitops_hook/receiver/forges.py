"""The table of forges: everything that differs between them.

To add a forge, add a row to `FORGES`, a row to the table in docs/forges.md, and payloads to tests/receiver.

A header identifies the forge: the one that names the event, or another one that only this forge sends. No signature is
tried for that, and a request that claims to come from two forges is rejected, so a sender cannot choose the weaker
scheme.

Sources: GitHub, "Webhook events and payloads". Gitea and Forgejo, "Webhooks". GitLab, "Webhook events". Bitbucket
Cloud and Bitbucket Data Center, "Event payloads".
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple

from gitops_hook.errors import HTTPError
from gitops_hook.receiver.payload import (
    RefChange,
    bitbucket_changes,
    bitbucket_rename,
    data_center_changes,
    github_changes,
    github_rename,
    gitlab_rename,
)
from gitops_hook.receiver.signatures import Digest, Headers, Token, header_key


class Forge(NamedTuple):
    """The properties of a forge. A member of a payload is given by its path, such as ``mainbranch.name``."""

    name: str
    #: The header with the event's name, and the header with the delivery's id.
    event: str
    delivery: str
    signature: Digest | Token
    #: The header that identifies the forge, if the one with the event's name does not.
    mark: str = ""
    #: Other forges whose headers it sends as well, for the readers that know only those.
    also: Collection[str] = ()
    #: The names of its push events. If the value is not empty, the member at this path must be ``push`` or
    #: ``tag_push``.
    pushes: Mapping[str, str] = {"push": ""}
    #: The name of its ping event.
    ping: str = ""
    #: The path of the repository; and below that, of its owner if the name does not contain it, of its name, and of
    #: its default branch.
    repository: str = "repository"
    owner: str = ""
    full_name: Sequence[str] = ("full_name", "name")
    default_branch: str = "default_branch"
    #: Whether owners nest. Then the last two parts of ``a/b/c`` are the name, as at the end of a clone URL.
    nested: bool = False
    #: The paths of the pusher's name, in the order of preference.
    pusher: Sequence[str] = ("pusher.name", "pusher.login")
    #: The function that returns the changed refs of a push.
    changes: Callable[[dict[str, Any]], list[RefChange]] = github_changes
    #: The function that returns the old and the new path of a repository, if an event says that it was renamed or
    #: transferred.
    renamed: Callable[[str, dict[str, Any]], tuple[str, str] | None] = lambda event, payload: None

    def is_claimed(self, headers: Headers) -> bool:
        """Return True if a request has the header that identifies this forge."""
        return header_key(self.mark or self.event) in headers


#: A forge that also sends another forge's headers stands before that one.
FORGES = (
    Forge(
        "Forgejo",
        event="X-Forgejo-Event",
        delivery="X-Forgejo-Delivery",
        signature=Digest("X-Forgejo-Signature", signs_field=True),
        also=("Gitea", "Gogs", "GitHub"),
    ),
    Forge(
        "Gitea",
        event="X-Gitea-Event",
        delivery="X-Gitea-Delivery",
        signature=Digest("X-Gitea-Signature", signs_field=True),
        also=("Gogs", "GitHub"),
    ),
    Forge(
        "Gogs",
        event="X-Gogs-Event",
        delivery="X-Gogs-Delivery",
        signature=Digest("X-Gogs-Signature", signs_field=True),
        also=("GitHub",),
    ),
    Forge(
        "GitHub",
        event="X-GitHub-Event",
        delivery="X-GitHub-Delivery",
        signature=Digest("X-Hub-Signature-256", prefix="sha256="),
        ping="ping",
        renamed=github_rename,
    ),
    Forge(
        "GitLab",
        event="X-Gitlab-Event",
        delivery="X-Gitlab-Event-UUID",
        signature=Token(),
        pushes={"Push Hook": "", "Tag Push Hook": "", "System Hook": "event_name"},
        repository="project",
        full_name=("path_with_namespace",),
        nested=True,
        pusher=("user_username", "user_name"),
        renamed=gitlab_rename,
    ),
    Forge(
        "Bitbucket",
        event="X-Event-Key",
        delivery="X-Request-UUID",
        signature=Digest("X-Hub-Signature", prefix="sha256="),
        mark="X-Hook-UUID",
        also=("Bitbucket Data Center",),
        pushes={"repo:push": ""},
        full_name=("full_name",),
        default_branch="mainbranch.name",
        pusher=("actor.nickname", "actor.display_name"),
        changes=bitbucket_changes,
        renamed=bitbucket_rename,
    ),
    Forge(
        "Bitbucket Data Center",
        event="X-Event-Key",
        delivery="X-Request-Id",
        signature=Digest("X-Hub-Signature", prefix="sha256="),
        pushes={"repo:refs_changed": ""},
        ping="diagnostics:ping",
        owner="project.key",
        full_name=("slug",),
        pusher=("actor.name", "actor.displayName"),
        changes=data_center_changes,
    ),
)
#: Forges that are not supported: the header that identifies each, and the reason of the rejection.
UNSUPPORTED = {
    "X-VSS-SubscriptionId": "Azure DevOps does not sign its webhooks; a signature of the body is required",
    "X-Gitee-Event": "Gitee signs the time but not the body; a signature of the body is required",
    "X-Harness-Trigger": "the signature scheme of Harness is not supported; use a sweep or `gitops-hook send`",
}
GITHUB = next(forge for forge in FORGES if forge.name == "GitHub")


def claimed_forge(headers: Headers) -> Forge:
    """Return the forge that a request claims to come from; without any claim, GitHub.

    Raise `HTTPError` (401) if it claims two, or one that is not supported.
    """
    for header, reason in UNSUPPORTED.items():
        if header_key(header) in headers:
            raise HTTPError(401, reason)
    present = [forge for forge in FORGES if forge.is_claimed(headers)]
    for other in present[1:]:
        if other.name not in present[0].also:
            raise HTTPError(401, f"the request claims to come from {present[0].name} and from {other.name}")
    return present[0] if present else GITHUB
