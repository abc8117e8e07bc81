"""Follows twins through as many watches as it takes: what breaks is resumed."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import grpc
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential

from meshkit.status import status_of
from twinmesh.twin.v1 import twin_service_pb2, twin_service_pb2_grpc
from twinmesh_cli.session import Session
from twinmesh_cli.watched import Told, Watched

# The service is never silent for longer than 15 s.
_SILENCE_S = 60.0
# A watch that lasted this long was a good one: what comes next is a new story.
_STEADY_S = 10.0
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 15.0
_PASSING = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.CANCELLED,
    # What a proxy makes of a stream that breaks.
    grpc.StatusCode.INTERNAL,
    grpc.StatusCode.UNKNOWN,
}


class _LostError(Exception):
    """The connection is lost, and another one may do."""


class Following:
    """Follows the twins of a selection.

    Args:
        session: with the gateway.
        request: the selection.
        watched: what is known of it.
        on_told: called with the changes of each event, of which there may be none.
        on_lost: called with why when the connection is lost.
        silence_s: a watch that says nothing for so many seconds is lost.
    """

    def __init__(
        self,
        *,
        session: Session,
        request: twin_service_pb2.WatchTwinsRequest,
        watched: Watched,
        on_told: Callable[[Sequence[Told]], None],
        on_lost: Callable[[str], None],
        silence_s: float = _SILENCE_S,
    ) -> None:
        self._session = session
        self._request = request
        self._watched = watched
        self._on_told = on_told
        self._on_lost = on_lost
        self._silence_s = silence_s
        self._stub: Any = twin_service_pb2_grpc.TwinServiceStub(session.channel)

    async def run(self) -> None:
        """Follow until cancelled.

        Raises:
            grpc.aio.AioRpcError: the first watch did not begin, or a later one is refused for good.
        """
        retrying = AsyncRetrying(
            retry=retry_if_exception_type(_LostError),
            wait=wait_random_exponential(multiplier=_FIRST_WAIT_S, max=_LONGEST_WAIT_S),
        )
        while True:
            await retrying(self._watch_once)

    async def _watch_once(self) -> None:
        """Watch until the connection is lost: return when it was a good one."""
        began = time.monotonic()
        heard = self._watched.is_whole
        answered = False
        call = None
        try:
            metadata = (("authorization", f"Bearer {await self._session.credential()}"),)
            self._request.resume_token = self._watched.resume_token
            self._watched.begin()
            call = self._stub.WatchTwins(self._request, metadata=metadata)
            while True:
                async with asyncio.timeout(self._silence_s):
                    response = await call.read()
                if response is grpc.aio.EOF:
                    lost = "the watch ended"
                    break
                answered = True
                self._on_told(self._watched.take(response))
        except TimeoutError:
            lost = f"nothing was heard for {self._silence_s:g} s"
        except grpc.aio.AioRpcError as error:
            # A credential that ended is renewed for the next watch, and then it must be good.
            is_expired = error.code() is grpc.StatusCode.UNAUTHENTICATED and answered
            if not (heard or answered) or not (is_expired or error.code() in _PASSING):
                raise
            lost = _why(error)
        finally:
            if call is not None:
                call.cancel()
        self._on_lost(lost)
        if time.monotonic() - began < _STEADY_S:
            raise _LostError(lost)


def _why(error: grpc.aio.AioRpcError) -> str:
    return f"{error.code().name}: {error.details()}" if status_of(error) else str(error.details())
