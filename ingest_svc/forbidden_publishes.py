"""Forbidden publishes: NATS acknowledges and drops them, and says so in nothing but its log.

So its log is read, and each becomes a dead letter of the tenant whose device it was.
"""

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import suppress
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
_CONNECTIONS = "$SYS.REQ.ACCOUNT.PING.CONNZ"
_ANSWER_S = 5.0
_TOLD_A_MINUTE = 100  # of one connection
_MINUTE_S = 60.0


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
                    await self._keep(int(violation["connection"]), json.loads(violation["subject"]))
                except (DomainError, BusError, TimeoutError, ValueError) as error:
                    _log.warning("forbidden publish is not kept", line=line, error=repr(error))

    async def _keep(self, connection: int, subject: str) -> None:
        now = asyncio.get_running_loop().time()
        if now >= self._forget_at:
            self._told.clear()
            self._forget_at = now + _MINUTE_S
        self._told[connection] += 1
        if self._told[connection] > _TOLD_A_MINUTE:
            return
        login = await self._login(connection)
        await self._writer.write(
            WriteRequest(
                tenant=login.tenant,
                principal=login.principal,
                identity=None,
                digest=b"",
                samples=[],
                outcome=b"",
                refused_outcome=b"",
                dead_letters=[self._dead_letter(login, subject)],
            )
        )

    def _dead_letter(self, login: Login, subject: str) -> DeadLetter:
        topic = subject.replace(".", "/")
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


async def _lines(log: Path) -> AsyncIterator[str]:
    """Yield the lines that are written to a file from now on; tail follows it by its name."""
    tail = await asyncio.create_subprocess_exec(
        "tail", "--lines=0", "--follow=name", "--retry", "--", str(log),
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    assert tail.stdout is not None  # noqa: S101 - as asked for
    try:
        async for line in tail.stdout:
            yield line.decode(errors="replace")
    finally:
        with suppress(ProcessLookupError):
            tail.terminate()
        await tail.wait()
