"""The JSON is what docs/openapi.json says, every path of it, and pages as it says."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from harness import SOURCE
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from scratch import Upstream, git
from webtest import TestApp

from gitops_hook.dashboard.app import Dashboard
from gitops_hook.journal.writer import Journal
from gitops_hook.model import Commit, Delivery
from gitops_hook.sync.checkouts import Checkouts
from gitops_hook.sync.run_log import HEAD_BYTES

DOCUMENT = json.loads((SOURCE / "docs/openapi.json").read_text())


def conforms(answer: Any, schema: dict[str, Any]) -> None:
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(answer)


def times(value: Any) -> Iterator[str]:
    """Every time in an answer, by the names of members that hold one."""
    if isinstance(value, dict):
        for name, member in value.items():
            if name in ("started", "fetched", "deployed", "healthy", "ended", "confirmed", "received", "time"):
                yield from [member] if isinstance(member, str) else []
            yield from times(member)
    elif isinstance(value, list):
        for member in value:
            yield from times(member)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[TestApp]:
    """A host where something of everything has happened."""
    upstream = Upstream(tmp_path / "forge")
    (tmp_path / "root").mkdir()
    upstream.checkout(tmp_path / "root", deploy="true")
    git("init", "--quiet", "plain", cwd=tmp_path / "root")
    with closing(Journal(tmp_path / "state")) as journal:
        for guid in ("first", "second"):
            journal.record(Delivery(guid, "push", time.time(), "acme/site", "refs/heads/main", "", "a" * 40, "ada"))
        done = journal.start("acme/site", "push")
        assert done
        ended = done.run._replace(
            ended=time.time(), outcome="updated", exit=0, before="", after="a" * 40, fetched=1.0, deployed=2.0, healthy=3.0,
            message="acme/site: main is at aaaaaaaaaa",
        )  # fmt: skip
        journal.finish(ended, settled=True)
        journal.save_commits(done.run.id, [Commit("a" * 40, "Ada", "Say hello", 4.0)], 1)
        journal.log_path(done.run.id).write_bytes(b"\x1b[31mred\xff\n")
        failed = journal.start("acme/gone", "sweep")
        assert failed
        journal.finish(
            failed.run._replace(ended=time.time(), outcome="timed-out", exit=124, after="b" * 40), settled=True
        )
        journal.record(Delivery("", "push", time.time(), "acme/owed", "refs/heads/main"))
        journal.start("acme/now", "recovery")
        yield TestApp(Dashboard(journal, Checkouts(tmp_path / "root")), extra_environ={"HTTP_HOST": "localhost:8788"})


def test_the_document_is_well_formed_openapi():
    validate(DOCUMENT)


ASKED = {
    "/api/repositories": ["/api/repositories", "/api/repositories?limit=1&after=acme/gone"],
    "/api/repositories/{owner}/{name}": [
        "/api/repositories/acme/site",
        "/api/repositories/acme/gone",
        "/api/repositories/acme/now",
    ],
    "/api/repositories/{name}": ["/api/repositories/plain"],
    "/api/runs": ["/api/runs", "/api/runs?limit=1", "/api/runs?repository=acme/site&before=9", "/api/runs?before=0"],
    "/api/runs/{id}": ["/api/runs/1", "/api/runs/2", "/api/runs/3"],
    "/api/runs/{id}/log": ["/api/runs/1/log", "/api/runs/1/log?offset=4", "/api/runs/2/log"],
    "/api/deliveries/{guid}": ["/api/deliveries/first", "/api/deliveries/second"],
}


@pytest.mark.parametrize("path", DOCUMENT["paths"])
def test_answers_are_as_the_document_says(api: TestApp, path: str):
    responses = DOCUMENT["paths"][path]["get"]["responses"]
    schema = responses["200"]["content"]["application/json"]["schema"]
    for asked in ASKED[path]:
        answer = api.get(asked)
        conforms(answer.json, schema)
        for moment in times(answer.json):
            assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", moment)
        api.get(asked, headers={"If-None-Match": answer.headers["ETag"]}, status=304)
    assert {"304", "405", "421", "503"} < set(responses)


@pytest.mark.parametrize(
    ("path", "asked", "status", "environ"),
    [
        ("/api/repositories", "/api/repositories?limit=x", 400, {}),
        ("/api/repositories/{owner}/{name}", "/api/repositories/acme/none", 404, {}),
        ("/api/repositories/{name}", "/api/repositories/none", 404, {}),
        ("/api/runs", "/api/runs?before=x", 400, {}),
        ("/api/runs/{id}", "/api/runs/77", 404, {}),
        ("/api/runs/{id}/log", "/api/runs/1/log?offset=x", 400, {}),
        ("/api/runs/{id}/log", "/api/runs/77/log", 404, {}),
        ("/api/deliveries/{guid}", "/api/deliveries/none", 404, {}),
        ("/api/runs", "/api/runs", 405, {"REQUEST_METHOD": "POST"}),
        ("/api/runs", "/api/runs", 421, {"HTTP_HOST": "evil.example"}),
    ],
)
def test_refusals_are_as_the_document_says(api: TestApp, path: str, asked: str, status: int, environ: dict[str, str]):
    response = DOCUMENT["paths"][path]["get"]["responses"][str(status)]
    response = DOCUMENT["components"]["responses"][response["$ref"].rpartition("/")[2]]
    answer = api.request(asked, environ=environ, method=environ.get("REQUEST_METHOD", "GET"), status=status)
    conforms(answer.json, response["content"]["application/json"]["schema"])


def test_pages_follow_one_another_until_there_is_no_next(api: TestApp):
    everything = api.get("/api/runs").json["runs"]
    assert [run["id"] for run in everything] == [3, 2, 1]
    found, path = [], "/api/runs?limit=2"
    while path:
        answer = api.get(path).json
        found += answer["runs"]
        path = answer["next"] and f"/api/runs?limit=2&before={answer['next']}"
    assert found == everything
    names = [standing["repository"] for standing in api.get("/api/repositories").json["repositories"]]
    assert names == ["acme/gone", "acme/now", "acme/site", "plain"]
    assert names == sorted(names)
    found, path = [], "/api/repositories?limit=2"
    while path:
        answer = api.get(path).json
        found += [standing["repository"] for standing in answer["repositories"]]
        path = answer["next"] and f"/api/repositories?limit=2&after={answer['next']}"
    assert found == names


def test_a_long_log_is_returned_in_parts(api: TestApp, tmp_path: Path):
    printed = b"0123456789\n" * 150_000
    note = b"\n[gitops-hook left out 5000 bytes here]\n"
    (tmp_path / "state/runs/1.log").write_bytes(printed[:HEAD_BYTES] + note + printed[HEAD_BYTES:])
    text, offset = "", 0
    while True:
        part = api.get(f"/api/runs/1/log?offset={offset}").json
        if part["ended"] and not part["text"]:
            break
        text, offset = text + part["text"], part["offset"]
    assert text.encode() == printed[:HEAD_BYTES] + note + printed[HEAD_BYTES:]
    assert offset == len(printed) + 5000


def test_every_path_is_documented():
    documented = set(re.findall(r"^\| `(/api/[^`]+)` \|", (SOURCE / "docs/api.md").read_text(), re.MULTILINE))
    paths = {path.replace("{", "<").replace("}", ">") for path in DOCUMENT["paths"]}
    assert documented | {"/api/repositories/<name>"} == paths
