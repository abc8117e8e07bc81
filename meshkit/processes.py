"""Calls to one of the processes of a service: to the next one when one does not answer."""

from collections.abc import Callable, Sequence
from typing import Any

import grpc

# A process that neither answers nor refuses costs one call its time, and the next one begins elsewhere.
_MAYBE_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


def addresses_of(listed: str) -> list[str]:
    """Return the addresses of a list with commas between them."""
    return [address.strip() for address in listed.split(",")]


class ProcessesChannel:
    """A channel for unary rpcs over channels to processes that answer all the same.

    A call that one refuses as UNAVAILABLE is made again at the next one, until all were asked. The next
    call begins with the process that is not known to be away.

    Args:
        channels: to each process, one or more.
    """

    def __init__(self, channels: Sequence[grpc.aio.Channel]) -> None:
        self._channels = channels
        self._first = 0

    def unary_unary(self, *arguments: Any, **named: Any) -> Callable[..., Any]:
        """Return a multi-callable; its calls are awaited and nothing else."""
        callables = [channel.unary_unary(*arguments, **named) for channel in self._channels]

        async def call(*arguments: Any, **named: Any) -> Any:
            for attempt in range(1, len(callables) + 1):
                asked = self._first
                try:
                    return await callables[asked](*arguments, **named)
                except grpc.aio.AioRpcError as error:
                    if error.code() in _MAYBE_AWAY:
                        self._leave(asked)
                    if error.code() != grpc.StatusCode.UNAVAILABLE or attempt == len(callables):
                        raise
                except BaseException:
                    # Whoever waited for it has given up.
                    self._leave(asked)
                    raise
            raise AssertionError("there is no process")

        return call

    def _leave(self, asked: int) -> None:
        # Unless another call has left it already.
        if self._first == asked:
            self._first = (asked + 1) % len(self._channels)
