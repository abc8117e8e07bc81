"""The command line's way to a gateway: credentials, channel, and errors people can read."""

import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, Self, TypeVar

import grpc
import typer
from google.rpc import error_details_pb2
from pydantic import Field, PrivateAttr, SecretStr, field_validator, model_validator

from meshkit.config import Settings
from meshkit.runtime import read_settings
from meshkit.status import status_of
from twinmesh.auth.v1 import session_service_pb2, session_service_pb2_grpc
from twinmesh_cli.gateway_access import GatewayAccess, first_name
from twinmesh_cli.settings import load_settings

_R = TypeVar("_R")
_CALL_TIMEOUT_S = 60.0
_RENEW_BEFORE_S = 60.0
_TRACE_HEADER = "x-trace-id"


class ClientSettings(Settings):
    """How the command line finds and enters a gateway."""

    gateway: str = Field(
        default_factory=lambda: load_settings().client_address,
        description="Address of the gateway for client commands, host:port, or https://host:port with TLS;"
        " the launcher's own if unset.",
    )
    gateway_authorities: Path | None = Field(
        None,
        description="PEM file of who signs the gateway's certificate; if unset the public authorities, or of"
        " the launcher's own gateway its certificate.",
    )
    gateway_server_name: str = Field(
        "", description="Name that the gateway's certificate bears, where the address is another."
    )
    mqtt: str = Field(
        default_factory=lambda: load_settings().mqtt_address,
        description="Address of MQTT for client commands, host:port; the launcher's own if unset.",
    )
    api_key: SecretStr = Field(SecretStr(""), description="API key for client commands; empty: the log-in.")
    credentials: Path = Field(
        Path(typer.get_app_dir("twinmesh")) / "credentials.json",
        description="Where `twinmesh login` keeps tokens.",
    )
    _access: GatewayAccess = PrivateAttr()

    @model_validator(mode="after")
    def _finds_the_gateway(self) -> Self:
        authorities, server_name = self.gateway_authorities, self.gateway_server_name
        try:
            if authorities is None and "gateway" not in self.model_fields_set:
                authorities = load_settings().gateway_tls_certificate
                server_name = server_name or (first_name(authorities) if authorities else "")
            self._access = GatewayAccess.read(self.gateway, authorities=authorities, server_name=server_name)
        except OSError as error:
            variable = f"TWINMESH_GATEWAY_{'AUTHORITIES' if self.gateway_authorities else 'TLS_CERTIFICATE'}"
            raise ValueError(f"{variable}: {error.filename}: {error.strerror}") from error
        return self

    @property
    def access(self) -> GatewayAccess:
        """Return how the gateway is reached."""
        return self._access

    @field_validator("api_key")
    @classmethod
    def _fits_into_a_header(cls, value: SecretStr) -> SecretStr:
        """Forgive the line end that comes of reading a file, and nothing else: gRPC would fail on it."""
        key = value.get_secret_value().strip()
        if not (key.isascii() and key.isprintable()):
            raise ValueError("this is no API key: it has characters that keys do not have")
        return SecretStr(key)


@dataclass(frozen=True, slots=True)
class Credentials:
    """Tokens of one log-in; `renew_at` is in seconds since the epoch."""

    access_token: str
    refresh_token: str
    renew_at: float


def credentials_of(
    answer: session_service_pb2.LoginResponse | session_service_pb2.RefreshResponse,
) -> Credentials:
    """Return what to keep of a log-in's or refresh's answer."""
    renew_at = time.time() + answer.expires_in.seconds - _RENEW_BEFORE_S
    return Credentials(answer.access_token, answer.refresh_token, renew_at)


class CredentialStore:
    """Keeps log-ins by gateway in a file that only its owner reads."""

    def __init__(self, *, path: Path, gateway: str) -> None:
        self._path = path
        self._gateway = gateway

    def read(self) -> Credentials | None:
        """Return the log-in of this gateway, None when there is none."""
        entry = self._all().get(self._gateway)
        return None if entry is None else Credentials(**entry)

    def write(self, credentials: Credentials | None) -> None:
        """Keep a log-in, or forget it."""
        entries = self._all()
        entries.pop(self._gateway, None)
        if credentials is not None:
            entries[self._gateway] = asdict(credentials)
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = self._path.with_suffix(".new")
        with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
            json.dump(entries, file)
        fresh.replace(self._path)

    def _all(self) -> dict[str, Any]:
        try:
            entries: dict[str, Any] = json.loads(self._path.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        return entries


class Session:
    """An open, authenticated connection to a gateway."""

    def __init__(self, *, channel: grpc.aio.Channel, settings: ClientSettings) -> None:
        self.channel = channel
        self.access = settings.access
        self.mqtt = settings.mqtt
        self.store = CredentialStore(path=settings.credentials, gateway=settings.gateway)
        self.api_key = settings.api_key.get_secret_value()
        self._renewing = asyncio.Lock()

    async def call(self, method: Callable[..., Awaitable[_R]], request: Any) -> _R:
        """Call an rpc with the caller's credential.

        Raises:
            grpc.aio.AioRpcError: as the gateway or the service answered.
        """
        metadata = (("authorization", f"Bearer {await self.credential()}"),)
        return await method(request, metadata=metadata, timeout=_CALL_TIMEOUT_S)

    async def listed(
        self,
        method: Callable[..., Awaitable[Any]],
        request: Any,
        items: Callable[[Any], Iterable[_R]],
        *,
        limit: int,
        page_size: int,
    ) -> tuple[list[_R], bool]:
        """Call an rpc that lists, page after page.

        Args:
            method: the rpc.
            request: of the first page; is made that of the ones behind it.
            items: returns those of an answer.
            limit: at most so many.
            page_size: the largest that the server gives.

        Returns:
            What is listed, and whether that is all.

        Raises:
            grpc.aio.AioRpcError: as the gateway or the service answered.
        """
        found: list[_R] = []
        while len(found) < limit:
            request.page_size = min(limit - len(found), page_size)
            page = await self.call(method, request)
            found += items(page)
            if not page.next_page_token:
                return found, True
            request.page_token = page.next_page_token
        return found, False

    async def credential(self, *, lasts_s: float = 0.0) -> str:
        """Return what the caller shows: the API key, or the log-in's access token, good for so many seconds.

        Raises:
            grpc.aio.AioRpcError: the session has ended.
        """
        return self.api_key or await self.access_token(lasts_s=lasts_s)

    async def access_token(self, *, lasts_s: float = 0.0) -> str:
        """Return the log-in's access token, renewed when it is about to end or not good for so many seconds.

        Raises:
            grpc.aio.AioRpcError: the session has ended.
        """
        async with self._renewing:
            credentials = self.store.read()
            if credentials is None:
                fail("not logged in; run `twinmesh login`, or set TWINMESH_API_KEY")
            if time.time() + lasts_s < credentials.renew_at:
                return credentials.access_token
            stub: Any = session_service_pb2_grpc.SessionServiceStub(self.channel)
            request = session_service_pb2.RefreshRequest(refresh_token=credentials.refresh_token)
            fresh = credentials_of(await stub.Refresh(request, timeout=_CALL_TIMEOUT_S))
            self.store.write(fresh)
            return fresh.access_token


@asynccontextmanager
async def open_session(settings: ClientSettings) -> AsyncIterator[Session]:
    """Open a session with the gateway of the settings."""
    async with settings.access.channel() as channel:
        yield Session(channel=channel, settings=settings)


def run(work: Callable[[Session], Awaitable[_R]]) -> _R:
    """Run a client command; an rpc that fails ends the program with what to do about it."""
    settings = read_settings("twinmesh", ClientSettings)

    async def with_session() -> _R:
        async with open_session(settings) as session:
            return await work(session)

    try:
        return asyncio.run(with_session())
    except grpc.aio.AioRpcError as error:
        fail(explain(error, gateway=settings.gateway))


def explain(error: grpc.aio.AioRpcError, *, gateway: str) -> str:
    """Return an rpc's error in words: what, which field, and the trace to quote."""
    status = status_of(error)
    if error.code() is grpc.StatusCode.UNAVAILABLE and status is None:
        return f"the gateway at {gateway} does not answer ({error.details()}); see `twinmesh status`"
    lines = [f"{error.code().name}: {error.details()}"]
    for detail in status.details if status is not None else ():
        bad = error_details_pb2.BadRequest()
        if detail.Is(bad.DESCRIPTOR):
            detail.Unpack(bad)
            # Rules of a whole message name no field.
            told = [": ".join(filter(None, (one.field, one.description))) for one in bad.field_violations]
            # A single one is the message already.
            lines += [f"  {violation}" for violation in told if violation != error.details()]
    trace_ids = [value for key, value in error.initial_metadata() if key == _TRACE_HEADER]
    if trace_ids:
        lines.append(f"  (twinmesh trace {trace_ids[0]!s})")
    return "\n".join(lines)


def fail(message: str) -> NoReturn:
    """End the program with a message on standard error."""
    print(message, file=sys.stderr)
    raise typer.Exit(1)
