"""Forbidden publishes: NATS acknowledges and drops them, and says so in nothing but its log.

So its log is read, and each becomes a dead letter of the tenant whose device it was.
"""

import asyncio
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import structlog
from nats.aio.client import Client
from nats.errors import Error as BusError

from ingest_svc.message_path import MessageWriter, reason_name
from meshkit.clock import Clock
from meshkit.errors import DomainError
from meshkit.mqtt import Login
from telemetry_store.requests import DeadLetter, WriteRequest
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
# 127.0.0.1:48560 - mid:28 - "client id" - Publish Violation - Subject "devices.x.telemetry"
# A client id is what a device likes; NATS writes it as a quoted string of Go.
_VIOLATION = re.compile(
    r"\[ERR\] \S+ - mid:(?P<connection>\d+) - \"(?:[^\"\\]|\\.)*\" - Publish Violation - "
    r"(?:User \"(?:[^\"\\]|\\.)*\", )?Subject (?P<subject>\"(?:[^\"\\]|\\.)*\")"
)
# Escapes in such strings: https://pkg.go.dev/strconv#Quote
_ESCAPE = re.compile(r"\\(?:x(?P<x>..)|u(?P<u>.{4})|U(?P<U>.{8})|(?P<letter>.))")
_LETTERS = dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True))
# How NATS writes a topic as a subject: https://docs.nats.io/running-a-nats-service/configuration/mqtt
_LEVELS = re.compile(r"/\.|//|/|\.")
_OF_SUBJECT = {"/.": "/", "//": ".", "/": "", ".": "/"}
_CONNECTIONS = "$SYS.REQ.ACCOUNT.PING.CONNZ"
_ANSWER_S = 5.0
_TOLD_A_MINUTE = 100  # of one connection
_MINUTE_S = 60.0
_LOOK_EVERY_S = 0.5
_READ_BYTES = 1024 * 1024


class ForbiddenPublishes:
    """Keeps what devices were not allowed to publish.

    At most 100 a minute of one connection are kept; the log has the others.

    Args:
        client: of the devices' account.
        writer: keeps dead letters.
        clock: dates them.
    """

    def __init__(self, *, client: Client, writer: MessageWriter, clock: Clock) -> None:
        self._client = client
        self._writer = writer
        self._clock = clock
        self._told: Counter[int] = Counter()
        self._forget_at = 0.0

    async def follow(self, log: Path) -> None:
        """Read a server's log from its present end until cancelled, also when it is rotated."""
        async for line in _lines(log):
            if (violation := _VIOLATION.search(line)) is not None:
                try:
                    await self._keep(int(violation["connection"]), _topic(violation["subject"]))
                except (DomainError, BusError, TimeoutError, ValueError) as error:
                    _log.warning("forbidden publish is not kept", line=line, error=repr(error))

    async def _keep(self, connection: int, topic: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._forget_at:
            self._told.clear()
            self._forget_at = now + _MINUTE_S
        self._told[connection] += 1
        if self._told[connection] > _TOLD_A_MINUTE:
            return
        login = await self._login(connection)
        await self._writer.submit(
            WriteRequest(
                tenant=login.tenant,
                principal=login.principal,
                identity=None,
                digest=b"",
                samples=[],
                outcome=b"",
                refused_outcome=b"",
                dead_letters=[self._dead_letter(login, topic)],
            )
        )

    def _dead_letter(self, login: Login, topic: str) -> DeadLetter:
        allowed = f"to devices/{login.device_id}/telemetry" if login.device_id else "for its tenant's devices"
        return DeadLetter(
            device_id=login.device_id or None,
            principal=login.principal,
            received_us=self._clock.now_us(),
            reason=reason_name(ErrorReason.ERROR_REASON_PUBLISH_FORBIDDEN),
            message=f"published to {topic}; this log-in may only publish {allowed}",
            payload=b"",  # The log has none.
        )

    async def _login(self, connection: int) -> Login:
        question = json.dumps({"cid": connection, "state": 2, "auth": True}).encode()  # 2: also closed ones
        answer = await self._client.request(_CONNECTIONS, question, timeout=_ANSWER_S)
        connections = json.loads(answer.data).get("data", {}).get("connections", [])
        if not connections:
            raise ValueError("NATS no longer knows the connection")
        return Login.parse(connections[0]["authorized_user"])


def _topic(quoted: str) -> str:
    """Return the topic of a subject that NATS has quoted."""
    subject = _ESCAPE.sub(_unescape, quoted[1:-1])
    return _LEVELS.sub(lambda found: _OF_SUBJECT[found[0]], subject)


def _unescape(escape: re.Match[str]) -> str:
    if (letter := escape["letter"]) is not None:
        return _LETTERS.get(letter, letter)
    return chr(int(escape["x"] or escape["u"] or escape["U"], 16))


async def _lines(log: Path) -> AsyncIterator[str]:
    """Yield the lines that are written to a file from now on; one that takes its place is read whole."""
    place = await asyncio.to_thread(_end, log)
    while True:
        await asyncio.sleep(_LOOK_EVERY_S)
        written, place = await asyncio.to_thread(_read, log, place)
        for line in written.splitlines():
            yield line.decode(errors="replace")


@dataclass(frozen=True, slots=True)
class _Place:
    """How far a file has been read."""

    inode: int
    offset: int


def _end(log: Path) -> _Place:
    try:
        found = log.stat()
    except FileNotFoundError:
        return _Place(0, 0)
    return _Place(found.st_ino, found.st_size)


def _read(log: Path, place: _Place) -> tuple[bytes, _Place]:
    """Return the whole lines after a place, at most 1 MiB, and the place behind them."""
    try:
        with log.open("rb") as file:
            found = os.fstat(file.fileno())
            is_same = found.st_ino == place.inode and found.st_size >= place.offset
            offset = place.offset if is_same else 0
            file.seek(offset)
            written = file.read(_READ_BYTES)
    except FileNotFoundError:
        return b"", place
    # Part of a line waits for its rest, unless there is no end to it.
    whole = written[: written.rfind(b"\n") + 1] or (written if len(written) == _READ_BYTES else b"")
    return whole, _Place(found.st_ino, offset + len(whole))
