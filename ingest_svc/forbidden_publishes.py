"""Forbidden publishes: NATS acknowledges and drops them, and says so in nothing but its log.

So its log is read, and each becomes a dead letter of the tenant whose device it was. Several
processes may read the same log: what one has kept, others know by its line.
"""

import ast
import asyncio
import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import closing
from io import FileIO
from pathlib import Path

import structlog
from nats.aio.client import Client
from nats.errors import Error as BusError

from ingest_svc.intake import Door
from ingest_svc.message_path import MessageWriter
from ingest_svc.outcome import reason_name
from meshkit.clock import Clock
from meshkit.errors import DomainError
from meshkit.mqtt import Login
from telemetry_store.requests import DeadLetter, PayloadFormat, RequestIdentity, WriteRequest
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
# [7] 2026/01/31 12:00:00.000000 [ERR] 127.0.0.1:48560 - mid:28 - "client id" - Publish Violation - …
# A client id is what a device likes; NATS writes it as a quoted string of Go. A line is looked at from
# its beginning, so that nothing that is quoted in another one passes for one.
_VIOLATION = re.compile(
    r"\[\d+\] \S+ \S+ \[ERR\] \S+ - mid:(?P<connection>\d+) - \"(?:[^\"\\]|\\.)*\" - Publish Violation - "
    r"(?:User \"(?:[^\"\\]|\\.)*\", )?Subject (?P<subject>\"(?:[^\"\\]|\\.)*\")"
)
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
            if (violation := _VIOLATION.match(line)) is not None:
                try:
                    known_as = hashlib.sha256(line.encode()).hexdigest()
                    await self._keep(int(violation["connection"]), _unquoted(violation["subject"]), known_as)
                except (DomainError, BusError, TimeoutError, ValueError) as error:
                    _log.warning("forbidden publish is not kept", line=line, error=repr(error))

    async def _keep(self, connection: int, subject: str, known_as: str) -> None:
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
                identity=RequestIdentity(known_as),
                digest=b"",
                samples=[],
                outcome=b"",
                refused_outcome=b"",
                door=Door.MQTT,
                dead_letters=[self._dead_letter(login, subject)],
            )
        )

    def _dead_letter(self, login: Login, subject: str) -> DeadLetter:
        topic = _topic(subject)
        if not topic.isprintable():
            topic = repr(topic)
        allowed = f"to devices/{login.device_id}/telemetry" if login.device_id else "for its tenant's devices"
        return DeadLetter(
            device_ids=[login.device_id] if login.device_id else [],
            principal=login.principal,
            received_us=self._clock.now_us(),
            reason=reason_name(ErrorReason.ERROR_REASON_PUBLISH_FORBIDDEN),
            message=f"published to {topic}; this log-in may only publish {allowed}",
            payload=b"",  # The log has none.
            payload_format=PayloadFormat.NONE,
        )

    async def _login(self, connection: int) -> Login:
        question = json.dumps({"cid": connection, "state": 2, "auth": True}).encode()  # 2: also closed ones
        answer = await self._client.request(_CONNECTIONS, question, timeout=_ANSWER_S)
        try:
            user = json.loads(answer.data)["data"]["connections"][0]["authorized_user"]
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError("NATS no longer knows the connection") from error
        return Login.parse(str(user))


def _unquoted(quoted: str) -> str:
    """Read a quoted string of Go, whose escapes are Python's as well.

    Raises:
        ValueError: it is none.
    """
    try:
        return str(ast.literal_eval(quoted))
    except SyntaxError as error:
        raise ValueError(f"{quoted} is no quoted string") from error


def _topic(subject: str) -> str:
    """Return the topic of a subject."""
    return _LEVELS.sub(lambda found: _OF_SUBJECT[found[0]], subject)


async def _lines(log: Path) -> AsyncIterator[str]:
    """Yield the lines that are written to a file from now on; one that takes its place is read whole."""
    with closing(_Followed(log)) as followed:
        await asyncio.to_thread(followed.skip)
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for line in (await asyncio.to_thread(followed.read)).splitlines():
                yield line.decode(errors="replace")


class _Followed:
    """A file that is read as it grows, and then the one that takes its place.

    It is held open: what was written before it was renamed is not missed, and no other file can
    pass for it.

    Args:
        path: where it is, or will be.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: FileIO | None = None
        self._is_told = False

    def close(self) -> None:
        """Let go of the file."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def skip(self) -> None:
        """Go to the present end."""
        if (file := self._opened()) is not None:
            file.seek(0, os.SEEK_END)

    def read(self) -> bytes:
        """Return the next whole lines, at most 1 MiB."""
        if (file := self._opened()) is None:
            return b""
        place = file.tell()
        if os.fstat(file.fileno()).st_size < place:  # It was cut.
            place = file.seek(0)
        written = file.read(_READ_BYTES)
        # Part of a line waits for its rest, unless there is no end to it.
        whole = written[: written.rfind(b"\n") + 1] or (written if len(written) == _READ_BYTES else b"")
        file.seek(place + len(whole))
        if not whole and self._is_replaced(file):
            self.close()
        return whole

    def _opened(self) -> FileIO | None:
        if self._file is None:
            try:
                self._file = self._path.open("rb", buffering=0)
                self._is_told = False
            except FileNotFoundError:
                pass  # Not yet.
            except OSError as error:
                self._tell(error)
        return self._file

    def _tell(self, error: OSError) -> None:
        if not self._is_told:
            self._is_told = True
            _log.warning(
                "forbidden publishes are not seen: the log of NATS cannot be read; let this user read it",
                log=str(self._path),
                error=repr(error),
            )

    def _is_replaced(self, file: FileIO) -> bool:
        try:
            return not os.path.samestat(os.fstat(file.fileno()), self._path.stat())
        except OSError:
            return False  # Not yet.
