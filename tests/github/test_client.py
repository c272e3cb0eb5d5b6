"""The client against a forge that limits, redirects, fails and hangs up."""

from __future__ import annotations

import re

import pytest
from fake_github import TOKEN, Fault, Forge

from gitops_hook.errors import GitopsError
from gitops_hook.github import client as module
from gitops_hook.github.client import ApiError, Client, is_at, read_token, web_url

HOOKS = "/repos/acme/site/hooks"


@pytest.fixture(autouse=True)
def by_the_same_clock(forge, clock):
    forge.clock = clock


def refused(client: Client, method: str = "GET", path: str = HOOKS) -> ApiError:
    with pytest.raises(ApiError) as caught:
        client.call(method, path)
    return caught.value


# -- what is sent --------------------------------------------------------------------------------------------------


def test_each_api_request_has_a_user_agent_and_an_api_version(forge, client):
    assert client.call("GET", HOOKS).value == []
    client.call("POST", HOOKS.replace("hooks", "statuses/" + "a" * 40), {"state": "success"})
    for asked in forge.asked:
        assert asked.headers["Authorization"] == f"Bearer {TOKEN}"
        assert asked.headers["X-Github-Api-Version"] == "2022-11-28"
        assert asked.headers["Accept"] == "application/vnd.github+json"
        assert asked.headers["User-Agent"].startswith("gitops-hook/")
    assert forge.asked[1].headers["Content-Type"] == "application/json"


def test_pages_are_requested_as_needed(forge, client):
    for number in range(250):
        forge.hook("acme/site", f"https://{number}.example.org")
    assert len(list(client.pages(HOOKS + "?per_page=100"))) == 250
    assert len(forge.asked) == 3
    assert next(client.pages(HOOKS + "?per_page=100"))["config"]["url"] == "https://0.example.org"
    assert len(forge.asked) == 4


# -- redirects -----------------------------------------------------------------------------------------------------


def test_a_renamed_repository_is_found_and_reported(forge, client):
    forge.rename("acme/site", "acme/web")
    hook = forge.hook("acme/web", "https://hooks.example.org")
    assert client.listing(HOOKS) == ([forge.shown(hook)], True)
    assert client.call("POST", f"{HOOKS}/{hook['id']}/pings").moved
    assert [asked.method for asked in forge.asked[2:]] == ["POST", "POST"]


@pytest.mark.parametrize(
    "location", ["http://127.0.0.1:9/x", "https://127.0.0.1/x", "http://evil.example.org/", "http://[", "http://a@b"]
)
def test_no_redirect_and_no_link_sends_the_token_to_another_host(forge, client, location):
    forge.faults.append(Fault("GET", 302, {"Location": location}))
    assert "leads to" in str(refused(client))
    forge.faults.append(Fault("GET", 200, {"Link": f'<{location}>; rel="next"'}, [{}]))
    with pytest.raises(ApiError, match="leads to"):
        list(client.pages(HOOKS))
    assert len(forge.asked) == 2


def test_redirects_in_a_circle_end(forge, client):
    forge.faults.append(Fault("GET", 302, {"Location": forge.url + HOOKS}, times=-1))
    assert refused(client).http == 302
    assert len(forge.asked) == 4


# -- limits --------------------------------------------------------------------------------------------------------


def test_a_second_passes_between_writes(forge, client, clock):
    hook = forge.hook("acme/site", "http://127.0.0.1:9/")
    for _ in range(3):
        client.call("POST", f"{HOOKS}/{hook['id']}/pings")
        client.call("GET", HOOKS)
    assert clock.slept == [1, 1]


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("fault", "wait"),
    [
        (Fault("", 429, {"Retry-After": "30"}), 30),
        (Fault("", 403, {"Retry-After": "7"}), 7),
        (Fault("", 403, {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "1800000100"}), 100),
        (Fault("", 403, {}, {"message": "You have exceeded a secondary rate limit."}), 60),
        (Fault("", 429), 60),
    ],
)
def test_a_rate_limit_is_waited_for(forge, client, clock, fault, wait, method):
    forge.faults.append(fault)
    path = HOOKS if method == "GET" else f"{HOOKS}/{forge.hook('acme/site', 'http://127.0.0.1:9/')['id']}/pings"
    client.call(method, path)
    assert sum(clock.slept) == pytest.approx(wait)
    assert len(forge.asked) == 2


def test_a_repeated_rate_limit_has_growing_waits_and_is_then_reported(forge, client, clock):
    forge.faults.append(Fault("", 429, times=-1))
    assert refused(client).http == 429
    assert clock.slept == [60, 120, 240]


def test_the_remaining_rate_limit_is_respected(forge, client, clock):
    forge.limit = 3
    for _ in range(7):
        client.call("GET", HOOKS)
    assert forge.turned_away == 0
    assert len(clock.slept) == 2


def test_a_caller_that_cannot_wait_receives_the_time(forge, clock):
    client = Client(forge.url, TOKEN, patience=2, tries=1, clock=clock, sleep=clock.sleep)
    forge.faults.append(Fault("", 403, {"Retry-After": "600"}))
    assert refused(client).again == clock.now + 600
    forge.limit = 1
    client.call("GET", HOOKS)
    error = refused(client)
    assert (error.http, error.status) == (429, 75)
    assert re.search(r"permits no request before \d\d:\d\d:\d\d", str(error))
    assert error.again > clock.now + 3000
    assert clock.slept == []


# -- faults --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("manner", ["", "cut", "close"])
def test_a_read_is_repeated_after_a_network_or_server_error(forge, client, clock, manner):
    forge.faults.append(Fault("", 200 if manner else 502, body=[{}] * 100, manner=manner, times=2))
    assert client.call("GET", HOOKS).value == []
    assert clock.slept == [1, 2]


@pytest.mark.parametrize("manner", ["", "cut", "close"])
def test_a_write_is_not_repeated(forge, client, clock, manner):
    forge.faults.append(Fault("", 201 if manner else 500, manner=manner))
    error = refused(client, "POST")
    assert error.again is not None
    assert len(forge.asked) == 1


def test_a_slow_forge_reaches_the_deadline(forge, clock, monkeypatch):
    monkeypatch.setattr(module, "_TIMEOUT", 0.2)
    forge.faults.append(Fault("", 200, manner="hang"))
    error = refused(Client(forge.url, TOKEN, tries=1, clock=clock))
    assert error.again == clock.now
    assert "timed out" in str(error)


def test_a_body_that_is_too_large_is_rejected(forge, clock, monkeypatch):
    monkeypatch.setattr(module, "_MAX_BYTES", 1000)
    forge.faults.append(Fault("", 200, body=["x" * 2000]))
    assert "too large" in str(refused(Client(forge.url, TOKEN, tries=1, clock=clock)))


@pytest.mark.parametrize("link", ["", "?page=2"])
def test_a_listing_never_requests_a_page_twice(forge, client, link):
    forge.faults.append(Fault("GET", 200, {"Link": f'<{forge.url}{HOOKS}{link}>; rel="next"'}, [{}], times=-1))
    with pytest.raises(ApiError, match="do not end"):
        list(client.pages(HOOKS))
    assert len(forge.asked) <= 2


def test_no_daemon_listens(clock):
    error = refused(Client("http://127.0.0.1:9", TOKEN, tries=1, clock=clock))
    assert error.http == 0
    assert "http://127.0.0.1:9 does not answer: Connection refused" in str(error)


def test_invalid_json_is_an_error_and_a_proxy_page_is_a_response(forge, client):
    forge.faults.append(Fault("", 200, body=b"<html>Sign in"))
    assert "not JSON" in str(refused(client, "POST"))
    forge.faults.append(Fault("", 422, body=b"<html>"))
    assert "answers 422" in str(refused(client))
    forge.faults.append(Fault("", 200, body=b"[" * 100_000))
    assert "not JSON" in str(refused(client, "POST"))
    forge.faults.append(Fault("", 200, body={}))
    with pytest.raises(ApiError, match="not a listing"):
        list(client.pages(HOOKS))


# -- what is missing, and whose it is ------------------------------------------------------------------------------

FINE = "https://example.org/settings/personal-access-tokens"
CLASSIC = "https://example.org/settings/tokens"


@pytest.mark.parametrize(
    ("path", "permission", "scope"),
    [
        (HOOKS, "repository permission Webhooks: read and write", "admin:repo_hook"),
        ("/orgs/acme/hooks", "organization permission Webhooks: read and write", "admin:org_hook"),
        ("/repos/acme/site/statuses/abc", "repository permission Commit statuses: read and write", "repo:status"),
        ("/repos/acme/site/deployments", "repository permission Deployments: read and write", "repo_deployment"),
        ("/repos/acme/site", "repository permission Metadata: read", "repo"),
    ],
)
@pytest.mark.parametrize("status", [403, 404])
def test_a_missing_scope_is_named_for_both_kinds_of_token_with_the_page(forge, client, path, permission, scope, status):
    web = web_url(forge.url)
    forge.faults.append(Fault("", status, body={"message": "Resource not accessible by personal access token"}))
    error = refused(client, path=path)
    assert (error.status, error.again) == (77, None)
    assert f"a fine-grained token needs the {permission}, set at {web}/settings/personal-access-tokens" in str(error)
    assert f"a classic one needs the scope {scope}, set at {web}/settings/tokens" in str(error)
    forge.faults.append(Fault("", status, {"X-Accepted-GitHub-Permissions": "repository_hooks=write"}))
    assert "(repository_hooks=write), set at" in (message := str(refused(client, path=path)))
    assert "classic" not in message
    forge.scopes = "repo:invite, gist"
    forge.faults.append(Fault("", status, {"X-Accepted-OAuth-Scopes": "admin:x, repo"}))
    assert f"{scope} (or any of: admin:x, repo), set at" in (message := str(refused(client, path=path)))
    assert message.endswith("this one has repo:invite, gist.")
    assert "fine-grained" not in message


def test_an_invalid_token_and_a_token_without_sso_authorization(forge, client, clock):
    error = refused(Client(forge.url, "wrong", clock=clock))
    assert "not valid" in str(error)
    assert "Bad credentials" in str(error)
    forge.faults.append(Fault("", 403, {"X-GitHub-SSO": "required; url=https://github.com/orgs/acme/sso?x=1"}))
    assert "requires an authorization of this token: https://github.com/orgs/acme/sso?x=1" in str(refused(client))


@pytest.mark.parametrize("status", [409, 410, 422])
def test_an_unknown_rejection_contains_the_forge_s_message(forge, client, status):
    errors = [{"message": "Hook already exists"}, {"code": "custom"}, "text"]
    forge.faults.append(Fault("", status, body={"message": "Validation Failed", "errors": errors}))
    error = refused(client)
    assert str(error).endswith(f"{status} to GET {HOOKS}: Validation Failed; Hook already exists; custom; text")
    assert error.again is None


def test_a_forge_that_shows_the_token_is_not_quoted(forge, client):
    forge.faults.append(Fault("", 422, body={"message": f"you said {TOKEN}\x1b[31m"}))
    assert "you said [the token]\ufffd[31m" in str(refused(client))


# -- the token, and where the forge is -----------------------------------------------------------------------------


def test_the_token_file_contains_one_word(tmp_path):
    file = tmp_path / "token"
    assert read_token(None) is None
    assert read_token(file) is None
    for content, token in ((b"", None), (b" \n", None), (b" abc \n\n", "abc")):
        file.write_bytes(content)
        assert read_token(file) == token
    for content in (b"a b", b"a\nb", b"\xff", b"a\0"):
        file.write_bytes(content)
        with pytest.raises(GitopsError, match="more than one token") as caught:
            read_token(file)
        assert content.decode("latin-1").strip() not in str(caught.value).replace(str(file), "")
    with pytest.raises(GitopsError):
        read_token(tmp_path)


def test_an_enterprise_server_is_asked_below_its_prefix(clock):
    forge = Forge(prefix="/api/v3")
    forge.add("acme/site")
    for number in range(3):
        forge.hook("acme/site", f"https://{number}.example.org")
    client = Client(forge.url, TOKEN, clock=clock, sleep=clock.sleep)
    assert len(list(client.pages(HOOKS + "?per_page=2"))) == 3
    forge.rename("acme/site", "acme/web")
    assert len(client.listing(HOOKS)[0]) == 3
    forge.close()


@pytest.mark.parametrize(
    ("api", "web"),
    [
        ("https://api.github.com", "https://github.com"),
        ("https://ghe.example.org/api/v3", "https://ghe.example.org"),
        ("https://api.acme.ghe.com", "https://acme.ghe.com"),
        ("http://127.0.0.1:80", "http://127.0.0.1:80"),
    ],
)
def test_web_pages_of_the_forge(api, web):
    assert web_url(api) == web


def test_clone_urls_of_the_forge():
    api = "https://api.github.com"
    for url in ("https://github.com/acme/site.git", "https://ada:token@GitHub.com/acme/site", "git@github.com:acme/site.git",
                "ssh://git@github.com:22/acme/site", "ssh://git@ssh.github.com:443/acme/site", "git://github.com/acme/site", "github.com:acme/site"):  # fmt: skip
        assert is_at(api, url), url
    for url in ("", "/srv/github.com/site", "https://gitlab.com/github.com/site", "git@gitlab.com:github.com/site",
                "https://github.com.example.org/acme/site", "https://example.org/github.com:acme/site"):  # fmt: skip
        assert not is_at(api, url), url
    assert is_at("https://ghe.example.org/api/v3", "git@ghe.example.org:acme/site")
    assert not is_at(api, "https://[github.com/acme/site")
