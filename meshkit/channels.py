"""Channels on which services prove themselves to each other, whatever becomes of their certificates."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc

from meshkit.service_identity import ServiceIdentity, channel_credentials, channel_options

# Longer than any call between services lasts.
_LAST_CALLS_S = 30.0
_Open = Callable[[grpc.ChannelCredentials], grpc.aio.Channel]


@asynccontextmanager
async def mutual_channel(
    target: str,
    *,
    service: str,
    identity: ServiceIdentity,
    options: Sequence[tuple[str, Any]],
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
) -> AsyncIterator[grpc.aio.Channel]:
    """Open a channel to a service and close it in the end.

    Args:
        target: where its processes are.
        service: whose certificate they must show.
        identity: who calls.
        options: of gRPC.
        interceptors: of calls.
    """

    def opened(credentials: grpc.ChannelCredentials) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            target, credentials, options=[*options, *channel_options(service)], interceptors=interceptors
        )

    channel = _RenewedChannel(identity, opened)
    try:
        # Stubs ask it for multi-callables and for nothing else.
        yield cast("grpc.aio.Channel", channel)
    finally:
        await channel.close()


class _RenewedChannel:
    """A channel whose calls go over another one once the certificate was replaced.

    gRPC would go on to show the old one whenever it connects, also when it has expired.
    """

    def __init__(self, identity: ServiceIdentity, open_: _Open) -> None:
        self._identity = identity
        self._open = open_
        self._shown = identity.present()
        self._opened = open_(channel_credentials(self._shown))
        self._closing: set[asyncio.Task[None]] = set()

    def unary_unary(self, *arguments: Any, **named: Any) -> "_Renewed":
        return _Renewed(self.opened, lambda channel: channel.unary_unary(*arguments, **named))

    def unary_stream(self, *arguments: Any, **named: Any) -> "_Renewed":
        return _Renewed(self.opened, lambda channel: channel.unary_stream(*arguments, **named))

    def stream_unary(self, *arguments: Any, **named: Any) -> "_Renewed":
        return _Renewed(self.opened, lambda channel: channel.stream_unary(*arguments, **named))

    def stream_stream(self, *arguments: Any, **named: Any) -> "_Renewed":
        return _Renewed(self.opened, lambda channel: channel.stream_stream(*arguments, **named))

    def opened(self) -> grpc.aio.Channel:
        """Return the channel that shows the present certificate."""
        present = self._identity.present()
        if present is not self._shown:
            closing = asyncio.create_task(_close_later(self._opened), name="close-channel")
            self._closing.add(closing)
            closing.add_done_callback(self._closing.discard)
            self._opened = self._open(channel_credentials(present))
            self._shown = present
        return self._opened

    async def close(self) -> None:
        """End all calls."""
        for closing in self._closing:
            closing.cancel()
        await asyncio.gather(*self._closing, return_exceptions=True)
        await self._opened.close()


class _Renewed:
    """A multi-callable of whichever channel is the present one."""

    def __init__(
        self, opened: Callable[[], grpc.aio.Channel], make: Callable[[grpc.aio.Channel], Any]
    ) -> None:
        self._present = opened
        self._make = make
        self._channel = opened()
        self._made = make(self._channel)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        channel = self._present()
        if channel is not self._channel:
            self._channel, self._made = channel, self._make(channel)
        return self._made(*arguments, **named)


async def _close_later(channel: grpc.aio.Channel) -> None:
    try:
        await asyncio.sleep(_LAST_CALLS_S)
    finally:
        await channel.close()
