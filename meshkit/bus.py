"""The connection to NATS."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import structlog
from nats.aio.client import Client

from meshkit.tasks import background

_log = structlog.get_logger()
_HEAD_START_S = 2.0


async def _nothing(_: Client) -> None:
    pass


@asynccontextmanager
async def connection(
    url: str,
    *,
    name: str,
    on_connect: Callable[[Client], Awaitable[None]] = _nothing,
    on_reconnect: Callable[[], None] = lambda: None,
) -> AsyncIterator[Client]:
    """Connect and stay connected, trying again for as long as the context is open.

    Messages are only hints: whoever subscribes reads the database when it missed some. So
    nobody waits long for a bus that is away; what is published meanwhile is kept, or refused.

    Args:
        url: nats:// URL with credentials.
        name: shown in the server's list of connections.
        on_connect: called with the client once it is connected; the place to subscribe.
        on_reconnect: called after each reconnection, when messages may have been missed.
    """

    async def on_error(error: Exception) -> None:
        _log.warning("bus error", error=str(error))

    async def on_disconnect() -> None:
        if not client.is_closed and not client.is_draining:
            _log.warning("bus disconnected")

    async def reconnected() -> None:
        _log.info("bus reconnected")
        on_reconnect()

    async def connect() -> None:
        try:
            await client.connect(
                url,
                name=name,
                max_reconnect_attempts=-1,
                reconnect_time_wait=1,
                error_cb=on_error,
                disconnected_cb=on_disconnect,
                reconnected_cb=reconnected,
            )
            await on_connect(client)
        except Exception as error:
            _log.exception("the bus cannot be used", error=repr(error))
        finally:
            tried.set()

    client, tried = Client(), asyncio.Event()
    async with background(connect(), name="bus"):
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_HEAD_START_S):
                    await tried.wait()
            yield client
        finally:
            await client.close()


def connected(client: Client) -> Callable[[], Awaitable[None]]:
    """Return the health check of a connection: it raises ConnectionError while the bus is away."""

    async def check() -> None:
        if not client.is_connected:
            raise ConnectionError("not connected")

    return check
