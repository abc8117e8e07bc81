"""HTTP to addresses that users or operators' files name: the one place that calls them.

What such a URL names may lie inside: this machine, its network, a cloud's metadata. So a name is
resolved once, every address it has is checked, and the connection goes to the very address that was
checked; a name that resolves otherwise a moment later changes nothing. Redirects are answers, not followed,
proxies of the environment are not used, and an answer has bounds on its time and size.

    OutboundError
    ├── AddressRefused       the URL, or where it leads, is not allowed
    └── OutboundFailed       it was allowed, and did not answer as it should
"""

import asyncio
import re
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from ipaddress import ip_address

import httpcore
import httpx

from meshkit.addresses import Address, Allowed, is_outside, literal

_TIMEOUT_S = 10.0
_CONNECT_TIMEOUT_S = 3.0
_MOST_BYTES = 1024 * 1024
_MOST_AT_ONCE = 32
_SCHEMES = frozenset({"http", "https"})
# As DNS and IDNA write it.
_HOST_NAME = re.compile(rb"[a-z0-9_.-]{1,253}")

# Takes a host name and a port, returns the addresses as text.
Resolve = Callable[[str, int], Awaitable[Sequence[str]]]


class OutboundError(Exception):
    """A call outside was refused or failed; the text names the URL's host, never the rest of the URL."""


class AddressRefused(OutboundError):
    """The URL, or an address that its host has, is not allowed."""


class OutboundFailed(OutboundError):
    """It was allowed, and did not answer as it should."""


@dataclass(frozen=True, slots=True)
class Response:
    """A whole answer; names of headers are in small letters."""

    status: int
    headers: Mapping[str, str]
    content: bytes


async def system_resolve(host: str, port: int) -> Sequence[str]:
    """Return the addresses that the system's resolver knows."""
    found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(sockaddr[0]) for _, _, _, _, sockaddr in found))


class Outbound:
    """Calls addresses outside; open it with `outbound`.

    Args:
        pool: whose connections check addresses.
        allowed: what may lie inside.
    """

    def __init__(self, *, pool: httpcore.AsyncConnectionPool, allowed: Allowed) -> None:
        self._pool = pool
        self._allowed = allowed

    def check(self, url: str) -> None:
        """Look at a URL as it is written, before it is kept: form, scheme, and an address in it.

        Raises:
            AddressRefused: it could never be called.
        """
        self._parsed(url)

    async def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        content: bytes = b"",
        timeout_s: float = _TIMEOUT_S,
        most_bytes: int = _MOST_BYTES,
    ) -> Response:
        """Send a request and return the whole answer, whatever its status below 300.

        Args:
            method: such as "GET".
            url: https, or http where the host is allowed by name or address.
            headers: beside `host` and what frames the body.
            content: the body.
            timeout_s: for everything, from resolving to the last byte.
            most_bytes: the longest body that is taken.

        Raises:
            AddressRefused: the URL, or an address of its host, is not allowed.
            OutboundFailed: it does not answer, in time, in full, with a status below 300.
        """
        parsed = self._parsed(url)
        host = parsed.host
        sent = {
            "host": parsed.netloc.decode("ascii"),
            # What is sent compressed could be any size when it is not.
            "accept-encoding": "identity",
            **(headers or {}),
        }
        if content:
            sent["content-length"] = str(len(content))
        try:
            async with (
                asyncio.timeout(timeout_s),
                self._pool.stream(
                    method,
                    httpcore.URL(
                        scheme=parsed.raw_scheme,
                        host=parsed.raw_host,
                        port=parsed.port,
                        target=parsed.raw_path,
                    ),
                    headers=[(name.encode("ascii"), value.encode("ascii")) for name, value in sent.items()],
                    content=content,
                    extensions={"timeout": {"connect": _CONNECT_TIMEOUT_S}},
                ) as answer,
            ):
                if answer.status >= 300:
                    redirected = " and redirects are not followed" if answer.status < 400 else ""
                    raise OutboundFailed(f"{host} answered {answer.status}{redirected}")
                body = await _read(answer.aiter_stream(), host=host, most_bytes=most_bytes)
        except TimeoutError:
            raise OutboundFailed(f"{host} did not answer within {timeout_s:g} s") from None
        except (httpcore.NetworkError, httpcore.ProtocolError, httpcore.TimeoutException) as error:
            raise OutboundFailed(
                f"{host} cannot be reached: {type(error).__name__} {error}".rstrip()
            ) from error
        names = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in answer.headers}
        return Response(answer.status, names, body)

    def _parsed(self, url: str) -> httpx.URL:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, TypeError) as error:
            raise AddressRefused("the URL cannot be read") from error
        host = parsed.host
        if parsed.scheme not in _SCHEMES or not host:
            raise AddressRefused("the URL must be https://host/…")
        if parsed.userinfo:
            raise AddressRefused(f"the URL of {host} must not carry a user or password")
        address = literal(host)
        if address is None and not _HOST_NAME.fullmatch(parsed.raw_host):
            raise AddressRefused("the URL has no host name that can be called")
        if address is not None and not self._may_call(host, address):
            raise AddressRefused(_inside(host))
        named = self._allowed.host(host) or (address is not None and self._allowed.address(address))
        if parsed.scheme != "https" and not named:
            raise AddressRefused(f"the URL of {host} must begin with https://")
        return parsed

    def _may_call(self, host: str, address: Address) -> bool:
        return is_outside(address) or self._allowed.host(host) or self._allowed.address(address)


@asynccontextmanager
async def outbound(
    allowed: Allowed, *, resolve: Resolve = system_resolve, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Outbound]:
    """Open what calls addresses outside, and close its connections in the end.

    Args:
        allowed: what may lie inside.
        resolve: finds the addresses of a name.
        tls: whom to trust; the usual authorities, or those of SSL_CERT_FILE, when None.
    """
    async with httpcore.AsyncConnectionPool(
        ssl_context=tls or httpx.create_ssl_context(),
        max_connections=_MOST_AT_ONCE,
        # Each call checks anew.
        max_keepalive_connections=0,
        network_backend=_CheckedNetwork(allowed=allowed, resolve=resolve),
    ) as pool:
        yield Outbound(pool=pool, allowed=allowed)


class _CheckedNetwork(httpcore.AsyncNetworkBackend):
    """Connects to addresses that were checked, of names that it resolves itself.

    TLS still proves the name: httpcore takes it from the URL, not from the connection.
    """

    def __init__(self, *, allowed: Allowed, resolve: Resolve) -> None:
        self._allowed = allowed
        self._resolve = resolve
        self._network = httpcore.AnyIOBackend()

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's interface
        local_address: str | None = None,
        socket_options: Iterable[httpcore.SOCKET_OPTION] | None = None,
    ) -> httpcore.AsyncNetworkStream:
        failure: Exception = httpcore.ConnectError(f"{host} has no address")
        for address in await self._addresses(host, port):
            try:
                return await self._network.connect_tcp(
                    str(address), port, timeout, local_address, socket_options
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _addresses(self, host: str, port: int) -> Sequence[Address]:
        address = literal(host)
        try:
            texts = [host.strip("[]")] if address is not None else await self._resolve(host, port)
            addresses = [ip_address(text) for text in texts]
        except (OSError, ValueError) as error:
            raise httpcore.ConnectError(f"{host} does not resolve") from error
        # One address inside is enough: a name with both kinds is made to be tried until it hits.
        if not self._allowed.host(host) and not all(
            is_outside(address) or self._allowed.address(address) for address in addresses
        ):
            raise AddressRefused(_inside(host))
        return addresses


async def _read(parts: AsyncIterator[bytes], *, host: str, most_bytes: int) -> bytes:
    body = bytearray()
    async for part in parts:
        body += part
        if len(body) > most_bytes:
            raise OutboundFailed(f"{host} answered more than {most_bytes} bytes")
    return bytes(body)


def _inside(host: str) -> str:
    # Not which address: that would tell a stranger about names inside.
    return f"{host} is not on the internet; the operator can allow it in TWINMESH_OUTBOUND_ALLOWED"
