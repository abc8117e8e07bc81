"""Identities of services for tests: one CA for the process, made when it is first asked for."""

import asyncio
import atexit
import shutil
import ssl
import tempfile
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

import grpc

from meshkit.ca.authority import CertificateAuthority
from meshkit.ca.folder import make_authority, read_authority
from meshkit.ca.identities import Place, write_identity
from meshkit.callers import GATEWAY
from meshkit.embedded.account import unprivileged_account
from meshkit.service_identity import (
    AUTHORITIES,
    IDENTITY,
    ServiceIdentity,
    channel_credentials,
    channel_options,
)
from meshkit.testing.line import End, first_of, pass_on

TRUST_DOMAIN = "twinmesh.test"


@cache
def authority() -> CertificateAuthority:
    """Return the tests' CA."""
    folder = _home() / "ca"
    make_authority(folder, TRUST_DOMAIN)
    return read_authority(folder)


@cache
def identity_dir(service: str) -> Path:
    """Return the folder of a service's identity; the gateway's is Envoy's to read."""
    folder = _home() / service
    folder.mkdir()
    account = unprivileged_account() if service == GATEWAY else None
    write_identity(authority(), service, Place(folder, account), now=datetime.now(UTC))
    return folder


@cache
def identity(service: str) -> ServiceIdentity:
    """Return a service's identity."""
    return ServiceIdentity(identity_dir(service))


def credentials(caller: str = GATEWAY) -> grpc.ChannelCredentials:
    """Return what a caller shows and believes."""
    return channel_credentials(identity(caller).present())


def channel(
    address: str,
    service: str,
    *,
    caller: str = GATEWAY,
    options: Sequence[tuple[str, Any]] = (),
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> grpc.aio.Channel:
    """Open a channel to a service as one of its callers, by default the one that brings users' calls."""
    return grpc.aio.secure_channel(
        address,
        credentials(caller),
        options=[*options, *channel_options(service)],
        interceptors=interceptors,
    )


def tls(caller: str = GATEWAY) -> ssl.SSLContext:
    """Return the same for sockets; `server_hostname` names the service."""
    folder = identity_dir(caller)
    context = ssl.create_default_context(cafile=folder / AUTHORITIES)
    context.load_cert_chain(folder / IDENTITY)
    context.set_alpn_protocols(["h2"])
    return context


@asynccontextmanager
async def plain_way_in(service: str, port: int, *, listen: int) -> AsyncIterator[None]:
    """Let in whoever cannot speak TLS, as the gateway does, while the context is open.

    Args:
        service: who listens on 127.0.0.1 or will.
        port: where.
        listen: port on 127.0.0.1 for the others.
    """

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        near = End(reader, writer)
        try:
            far = End(*await asyncio.open_connection("127.0.0.1", port, ssl=tls(), server_hostname=service))
        except OSError:
            near.abort()
            return
        try:
            await first_of(pass_on(near, far), pass_on(far, near))
        finally:
            far.abort()
            near.abort()

    async with await asyncio.start_server(accept, "127.0.0.1", listen):
        yield


@cache
def _home() -> Path:
    # World-traversable, since Envoy drops to an unprivileged user.
    home = Path(tempfile.mkdtemp(prefix="tm-identities-"))
    home.chmod(0o755)
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home
