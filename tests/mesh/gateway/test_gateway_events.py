"""A stream of the server as JSON: server-sent events, which scripts read to the last one."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from meshkit import errors
from tests.mesh.gateway.conftest import Gateway, detail, reason
from tests.mesh.gateway.neighbours import GOOD_KEY, Watches
from twinmesh.type.v1.error_reason_pb2 import ERROR_REASON_DEPENDENCY_UNAVAILABLE

WATCH = "/v1/twins:watch"


@contextmanager
def watching(gateway: Gateway, query: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Open a watch; yields its events, each as soon as it is here."""
    with gateway.http.stream("GET", f"{WATCH}?{query}", headers=gateway.bearer) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        yield events(answer)


def events(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    lines = answer.iter_lines()
    for line in lines:
        assert line.startswith("data: ")
        assert next(lines) == ""
        yield json.loads(line.removeprefix("data: "))


def test_each_event_is_here_as_soon_as_it_is_told(gateway: Gateway, watches: Watches) -> None:
    with watching(gateway, "ids=pump") as heard:
        assert next(heard)["snapshot"]["twins"][0]["id"] == "pump"
        watch = watches.get(timeout=30)
        watch.tell(snapshot_end={"resume_token": "a"})
        assert next(heard) == {"snapshotEnd": {"resumeToken": "a"}}
        watch.tell(change={"twins": [{"id": "pump", "display_name": "two\nlines\r\n\n"}]})
        assert next(heard)["change"]["twins"][0]["displayName"] == "two\nlines\r\n\n"
        watch.tell(bookmark={"resume_token": "b"})
        assert next(heard) == {"bookmark": {"resumeToken": "b"}}
        watch.end()
        assert list(heard) == []


@pytest.mark.parametrize("name", ["resumeToken", "resume_token"])
def test_a_watch_is_selected_by_its_query(gateway: Gateway, watches: Watches, name: str) -> None:
    query = f"ids=a&ids=b&tag=hot+room&area.south=-1.5&area.west=170&area.east=-170&{name}=x&interval=0.5s"
    with watching(gateway, query):
        asked = gateway.arrivals.requests[-1]
    assert (list(asked.ids), asked.tag, asked.resume_token) == (["a", "b"], "hot room", "x")
    assert (asked.area.south, asked.area.west, asked.area.east) == (-1.5, 170, -170)
    assert asked.interval.ToMilliseconds() == 500


def test_a_caller_that_leaves_an_idle_watch_ends_the_call(gateway: Gateway, watches: Watches) -> None:
    with watching(gateway, "ids=pump") as heard:
        next(heard)
        watch = watches.get(timeout=30)
        assert not watch.over.is_set()
    assert watch.over.wait(30)


def test_an_error_in_mid_stream_is_told_by_the_last_event_alone(gateway: Gateway, watches: Watches) -> None:
    with watching(gateway, "ids=pump") as heard:
        next(heard)
        watch = watches.get(timeout=30)
        away = ERROR_REASON_DEPENDENCY_UNAVAILABLE
        watch.tell(end={"reason": away, "message": "resume", "resume_token": "c"})
        watch.end(errors.dependency_unavailable("twin_svc"))
        # Nothing is added, and the body is whole: httpx finds it cut short otherwise.
        assert list(heard) == [
            {
                "end": {
                    "reason": "ERROR_REASON_DEPENDENCY_UNAVAILABLE",
                    "message": "resume",
                    "resumeToken": "c",
                }
            }
        ]


@pytest.mark.parametrize(
    ("credential", "expected"),
    [(None, "CREDENTIAL_MISSING"), ("a.b.c", "TOKEN_INVALID"), ("tmk_acme_1_wrong", "API_KEY_INVALID")],
)
def test_who_may_not_watch_is_told_by_the_status(
    gateway: Gateway, credential: str | None, expected: str
) -> None:
    headers = {} if credential is None else {"authorization": f"Bearer {credential}"}
    answer = gateway.http.get(WATCH, headers=headers)
    assert (answer.status_code, reason(answer)) == (401, expected)


@pytest.mark.parametrize(
    "query", ["pageSize=1", "area=1", "area.middle=1", "area.south=low", "interval=soon", "interval=1"]
)
def test_a_question_that_cannot_be_read_is_no_stream(gateway: Gateway, query: str) -> None:
    answer = gateway.http.get(f"{WATCH}?{query}", headers=gateway.bearer)
    assert (answer.status_code, reason(answer)) == (400, "INVALID_FIELD")


def test_an_error_before_the_first_event_is_no_stream(gateway: Gateway) -> None:
    answer = gateway.http.get(f"{WATCH}?ids=wrong", headers=gateway.bearer)
    assert (answer.status_code, reason(answer)) == (400, "INVALID_FIELD")
    assert detail(answer, "BadRequest")["fieldViolations"][0]["field"] == "resume_token"


def test_an_api_key_watches_too(gateway: Gateway, watches: Watches) -> None:
    headers = {"authorization": f"Bearer {GOOD_KEY}"}
    with gateway.http.stream("GET", WATCH, headers=headers) as answer:
        assert "snapshot" in next(events(answer))
