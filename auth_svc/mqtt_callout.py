"""Log-ins of devices by MQTT, about which NATS asks, and their end."""

import asyncio
import json
import math
import re
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Protocol

import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.errors import Error as BusError

from auth_svc.device_logins import Permitted
from auth_svc.nats_tokens import LoginAnswers, LoginRequest
from meshkit import bus
from meshkit.audit import AuditTrail
from meshkit.clock import MICROS_PER_SECOND, Clock
from meshkit.connections import Connections
from meshkit.errors import (
    DomainError,
    PermissionDenied,
    ResourceExhausted,
    Unauthenticated,
    dependency_unavailable,
    invalid_field,
)
from meshkit.mqtt import CONSUMER, DEVICES_ACCOUNT, STREAM, Login, telemetry_subject
from meshkit.revocations import Revocation, RevocationKind
from meshkit.tasks import background
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_EXPIRED = {
    False: ErrorReason.ERROR_REASON_API_KEY_INVALID,
    True: ErrorReason.ERROR_REASON_CERTIFICATE_INVALID,
}
_LOGINS = "$SYS.REQ.USER.AUTH"
_STREAMS = "$SYS.REQ.SERVER.PING.JSZ"
_CONNECTIONS = "$SYS.REQ.SERVER.PING.CONNZ"
_QUEUE = "auth"
_CONNECT = "MQTT CONNECT"  # as the account calls a log-in, which is no rpc
_PROTOCOL = "mqtt"
_ANSWER_S = 3.0
_ENDED_AT_ONCE = 100
_LOGINS_AT_ONCE = 64
_CONSUMER_SEEN_S = 1.0
# NATS goes through all connections for each page of them: ten thousand cost twice as much in ten pages.
_PAGE = 8_192
# All of a page's have to fit into an answer of NATS: it ends connections that are not read as fast.
_MOST_CLIENT_ID_BYTES = 256
_ID = re.compile("[a-z0-9-]{1,64}")
_SWEEP_EVERY_S = 10.0
# A log-in that was under way when its key was revoked has come in by then, or been given up by NATS.
_LOGIN_LASTS_S = 6.0
# All processes see the same connections, those of NATS, and hold them together.
MQTT_HOLDER = uuid.UUID("6d717474-0000-4000-8000-000000000000")
_COUNT_AGAIN_AFTER_S = 1.0
_CONCERNING = frozenset({RevocationKind.API_KEY, RevocationKind.CERTIFICATE, RevocationKind.TENANT})


class Logins(Protocol):
    """Decides who may come in."""

    async def log_in(self, user: str, password: str, *, address: str) -> Permitted:
        """Return what a device may do, as DeviceLogins does."""
        ...

    async def log_in_by_certificate(self, pem: str) -> Permitted:
        """Return what a device may do that has shown a certificate, as DeviceLogins does."""
        ...

    async def ended(self, logins: Sequence[Login]) -> Sequence[Login]:
        """Return those whose credential has no right any more, as DeviceLogins does."""
        ...

    async def outdated(self, logins: Sequence[Login]) -> Sequence[Login]:
        """Return those that may not go on, as DeviceLogins does."""
        ...


class MqttCallout:
    """Answers NATS about log-ins, and disconnects those whose right has ended.

    Nobody comes in before ingest_svc can keep what devices publish: NATS would acknowledge
    it all the same.

    Args:
        logins: decides.
        answers: signs.
        trail: takes the account of each log-in.
        connections: has a place for each device that is connected.
        clock: dates answers.
    """

    def __init__(
        self,
        *,
        logins: Logins,
        answers: LoginAnswers,
        trail: AuditTrail,
        connections: Connections,
        clock: Clock,
    ) -> None:
        self._logins = logins
        self._connections = connections
        self._answers = answers
        self._trail = trail
        self._clock = clock
        self._client: Client | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._free = asyncio.Semaphore(_LOGINS_AT_ONCE)
        self._consumer_seen_until = 0.0
        self._sweep_at = 0.0
        self._counted_at = 0.0
        self._recount_at = math.inf
        self._revoked_at: list[float] = []
        self._wake = asyncio.Event()

    @asynccontextmanager
    async def running(self, url: str, *, name: str) -> AsyncIterator[Client]:
        """Answer while the context is open.

        Args:
            url: of NATS's system account, with the credentials of auth_svc.
            name: shown in the server's list of connections.
        """
        async with (
            bus.connection(url, name=name, on_connect=self._follow) as client,
            background(self._sweep_repeatedly(), name="mqtt-sweep"),
            background(self._check_devices_repeatedly(), name="mqtt-devices"),
        ):
            try:
                yield client
            finally:
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)

    def revoked(self, revocations: Sequence[Revocation]) -> None:
        """Disconnect soon whoever logged in with a key or certificate that was revoked."""
        if any(revocation.kind in _CONCERNING for revocation in revocations):
            now = asyncio.get_running_loop().time()
            self._revoked_at.append(now)
            self._sweep_at = now
            self._wake.set()

    async def _follow(self, client: Client) -> None:
        await client.subscribe(_LOGINS, queue=_QUEUE, cb=self._begin)
        self._client = client

    async def _begin(self, message: Msg) -> None:
        await self._free.acquire()
        task = asyncio.create_task(self._answer(message), name="mqtt-login")
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._free.release()

    async def _answer(self, message: Msg) -> None:
        try:
            await message.respond(await self._decide(LoginRequest.parse(message.data)))
        except Exception:
            _log.exception("log-in by MQTT failed")  # Without an answer NATS refuses it.

    async def _decide(self, request: LoginRequest) -> bytes:
        now = self._clock.now_us() // MICROS_PER_SECOND
        try:
            with self._trail.call(_CONNECT, None, recorded=True) as call:
                call.address = request.host
                permitted, ends = await self._permit(request, now)
                call.principal = permitted.login.as_principal
                call.targets = [permitted.login.device_id] if permitted.login.device_id else []
        except DomainError as error:
            why = str(error)
            _log.info("log-in by MQTT refused", user=_shown(request.user), host=request.host, why=why)
            return self._answers.refuse(request, why=why, now=now)
        return self._answers.permit(
            request,
            account=DEVICES_ACCOUNT,
            name=permitted.login.text,
            publish=[telemetry_subject(device_id) for device_id in permitted.device_ids],
            now=now,
            expire=ends,
        )

    async def _permit(self, request: LoginRequest, now: int) -> tuple[Permitted, int | None]:
        """Return what a device may do, and the second in which that ends, or raise why it may nothing."""
        if request.protocol != _PROTOCOL:
            # NATS does not look at the connection types that a permit allows.
            raise PermissionDenied(
                "devices come in by MQTT only", reason=ErrorReason.ERROR_REASON_PERMISSION_MISSING
            )
        if len(request.client_id.encode()) > _MOST_CLIENT_ID_BYTES:
            raise invalid_field("client_id", f"has more than {_MOST_CLIENT_ID_BYTES} bytes")
        if request.certificate:
            permitted = await self._logins.log_in_by_certificate(request.certificate)
        else:
            permitted = await self._logins.log_in(request.user, request.password, address=request.host)
        ends = None if permitted.expire_us is None else permitted.expire_us // MICROS_PER_SECOND
        if ends is not None and ends <= now:
            # NATS knows whole seconds only: it would drop the connection before it accepted it.
            raise Unauthenticated(
                "the credential expires within this second",
                reason=_EXPIRED[permitted.login.by_certificate],
            )
        await self._require_consumer()
        await self._take_place(permitted.login)
        return permitted, ends

    async def _take_place(self, login: Login) -> None:
        """Count a connection; that it ended is seen when all are looked through."""
        try:
            await self._connections.open(login.tenant, login.principal)
        except ResourceExhausted:
            # Some may have ended since they were counted.
            self._recount_at = self._counted_at + _COUNT_AGAIN_AFTER_S
            self._wake.set()
            raise

    async def _require_consumer(self) -> None:
        """Raise Unavailable unless ingest_svc has its consumer."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._consumer_seen_until:
            return
        question = {"account": DEVICES_ACCOUNT, "accounts": True, "streams": True, "consumer": True}
        try:
            found = await self._ask(_STREAMS, question)
        except (BusError, TimeoutError) as error:
            raise dependency_unavailable("nats") from error
        names = {
            consumer["name"]
            for account in found.get("account_details", [])
            for stream in account.get("stream_detail", [])
            if stream["name"] == STREAM
            for consumer in stream.get("consumer_detail", [])
        }
        if CONSUMER not in names:
            raise dependency_unavailable("ingest_svc")
        self._consumer_seen_until = loop.time() + _CONSUMER_SEEN_S

    async def _sweep_repeatedly(self) -> None:
        """Look through all credentials every ten seconds, and when some were revoked.

        After a refusal they are counted only: whoever is refused again and again costs no look at
        everybody's credentials.
        """
        loop = asyncio.get_running_loop()
        while True:
            self._wake.clear()
            if loop.time() < (due := min(self._sweep_at, self._recount_at)):
                try:
                    async with asyncio.timeout_at(due):
                        await self._wake.wait()
                except TimeoutError:
                    pass
                continue
            self._counted_at, self._recount_at = loop.time(), math.inf
            look: Callable[[], Awaitable[object]] = self._recount
            if self._sweep_at <= self._counted_at:
                self._sweep_at = self._counted_at + _SWEEP_EVERY_S
                look = self._sweep
            try:
                await look()
            except Exception as error:  # The database's as well; the next look follows.
                _log.warning("connections of devices are not looked through", error=repr(error))
            now = loop.time()
            # Once more, for log-ins that were under way.
            self._revoked_at = [at for at in self._revoked_at if at + _LOGIN_LASTS_S > now]
            self._sweep_at = min([self._sweep_at, *(at + _LOGIN_LASTS_S for at in self._revoked_at)])

    @property
    def _is_connected(self) -> bool:
        return self._client is not None and self._client.is_connected

    async def _recount(self) -> tuple[str, dict[int, Login]]:
        """Count them; returns what `_connected` does."""
        if not self._is_connected:
            return "", {}
        server, connections = await self._connected()
        self._connections.recount(Counter(login.tenant for login in connections.values()))
        return server, connections

    async def _sweep(self) -> None:
        """Disconnect whose credential has no right any more."""
        server, connections = await self._recount()
        await self._end_those(server, connections, self._logins.ended)

    async def _check_devices_repeatedly(self) -> None:
        """Look every ten seconds whether devices may still be connected.

        It takes longer than a look at credentials, for which what is revoked must not wait.
        """
        while True:
            try:
                await self._check_devices()
            except Exception as error:  # Whatever it was, the next look follows.
                _log.warning("devices that are connected are not looked at", error=repr(error))
            await asyncio.sleep(_SWEEP_EVERY_S)

    async def _check_devices(self) -> None:
        """Disconnect who would not be let in today, or would be told other devices."""
        if self._is_connected:
            await self._end_those(*await self._connected(), self._logins.outdated)

    async def _end_those(
        self,
        server: str,
        connections: Mapping[int, Login],
        look: Callable[[Sequence[Login]], Awaitable[Sequence[Login]]],
    ) -> None:
        if not connections:
            return
        found = set(await look(list(set(connections.values()))))
        ended = [connection for connection, login in connections.items() if login in found]
        failed: list[Exception] = []
        for start in range(0, len(ended), _ENDED_AT_ONCE):
            part = {each: connections[each] for each in ended[start : start + _ENDED_AT_ONCE]}
            try:
                await self._end(server, part)
            except Exception as error:
                failed.append(error)
                if not self._is_connected:
                    break
        if failed:
            # Those are looked for again; the others had not to wait for that.
            raise failed[0]

    async def _end(self, server: str, connections: Mapping[int, Login]) -> None:
        """Disconnect some; as NATS takes what it is told in order, its answer about the last is for all."""
        assert self._client is not None  # noqa: S101 - nobody asks before it follows
        subject = f"$SYS.REQ.SERVER.{server}.KICK"
        # NATS ends nobody without a subject to answer on. To this one it sends nothing: nobody listens.
        unheard = self._client.new_inbox()
        *all_before, last = connections
        for connection in all_before:
            question = json.dumps({"cid": connection}).encode()
            await self._client.publish(subject, question, reply=unheard)
        await self._ask(subject, {"cid": last})
        _log.info("devices disconnected", logins=[login.text for login in connections.values()])

    async def _connected(self) -> tuple[str, dict[int, Login]]:
        """Return the server's id and who is behind its MQTT connections, by connection."""
        found: dict[int, Login] = {}
        offset, total, server = 0, 1, ""
        while offset < total:
            question = {"acc": DEVICES_ACCOUNT, "auth": True, "limit": _PAGE, "offset": offset}
            answer = await self._client_request(_CONNECTIONS, question)
            server, page = answer["server"]["id"], answer["data"]
            total = page["total"]
            offset += _PAGE
            for connection in page["connections"]:
                if connection.get("type") == "mqtt" and (login := _login_of(connection)):
                    found[connection["cid"]] = login
        return server, found

    async def _ask(self, subject: str, question: Mapping[str, object]) -> Mapping[str, Any]:
        answer = await self._client_request(subject, question)
        data: Mapping[str, Any] = answer.get("data", {})
        return data

    async def _client_request(self, subject: str, question: Mapping[str, object]) -> Mapping[str, Any]:
        assert self._client is not None  # noqa: S101 - nobody asks before it follows
        message = await self._client.request(subject, json.dumps(question).encode(), timeout=_ANSWER_S)
        answer: Mapping[str, Any] = json.loads(message.data)
        return answer


def _login_of(connection: Mapping[str, Any]) -> Login | None:
    """Return who is behind a connection, None while NATS has not taken over what it was told."""
    try:
        return Login.parse(connection["authorized_user"])
    except (LookupError, ValueError) as error:
        _log.warning("a connection names no log-in", connection=connection["cid"], error=repr(error))
        return None


def _shown(user: str) -> str:
    """Return a log-in's user as the log may have it: a key that was sent in its place is a secret."""
    return user if _ID.fullmatch(user) else "(no id)"
