"""Streams that are open: each ends when the credential behind it has ended or was revoked."""

import asyncio
from collections.abc import Callable, Sequence
from contextvars import ContextVar

import structlog

from meshkit.connections import Connections
from meshkit.errors import DomainError, Unauthenticated
from meshkit.identity import Principal, TokenVerifier
from meshkit.revocations import Revocation
from meshkit.status import reason_name
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_log = structlog.get_logger()
_LOOK_EVERY_S = 0.5
# In which a handler that wants to may say its last words.
_LAST_WORDS_S = 2.0


class OpenCall:
    """A stream that is being served.

    It ends with UNAUTHENTICATED once its credential has: at once, whatever its handler does and whether or
    not its client reads; or, when the handler asked to be told, two seconds after that.

    Args:
        principal: who opened it.
        address: where from.
        cut_off: ends the call with an error.
        renewed: told of the credential that takes the place of another.

    Attributes:
        address: where it was opened from, as meshkit.caller_address tells it.
        principal: whose it is; another one's credential never takes its place.
        error: why its credential has ended, None while it has not.
    """

    __slots__ = ("_cut_off", "_ending", "_is_cut_off", "_renewed", "_tell", "address", "error", "principal")

    def __init__(
        self,
        principal: Principal,
        *,
        address: str,
        cut_off: Callable[[DomainError], None],
        renewed: Callable[[Principal], None],
    ) -> None:
        self.principal = principal
        self.address = address
        self.error: Unauthenticated | None = None
        self._cut_off = cut_off
        self._renewed = renewed
        self._is_cut_off = False
        self._tell: Callable[[Unauthenticated], None] | None = None
        self._ending: asyncio.TimerHandle | None = None

    def on_end(self, tell: Callable[[Unauthenticated], None]) -> None:
        """Have the handler told why it has to end; it takes nothing more from then on."""
        self._tell = tell

    def renew(self, principal: Principal) -> None:
        """Go on with another credential of the same principal, which was verified just now.

        Raises:
            Unauthenticated: TOKEN_INVALID, it is another principal's; or the one before has ended already.
        """
        if self.error is not None:
            raise self.error
        if (principal.tenant, principal.name) != (self.principal.tenant, self.principal.name):
            raise Unauthenticated(
                "the new credential is another principal's; open a new stream with it",
                reason=ErrorReason.ERROR_REASON_TOKEN_INVALID,
            )
        self.principal = principal
        self._renewed(principal)

    def end(self, error: Unauthenticated) -> None:
        """End it because of its credential."""
        if self.error is not None:
            return
        self.error = error
        _log.info("stream's credential has ended", reason=reason_name(error.reason), **_names(self.principal))
        if self._tell is None:
            self.cut_off(error)
        else:
            self._ending = asyncio.get_running_loop().call_later(_LAST_WORDS_S, self.cut_off, error)
            self._tell(error)

    def cut_off(self, error: DomainError) -> None:
        """End the call with an error now, also while it writes to a client that does not read."""
        if not self._is_cut_off:
            self._is_cut_off = True
            self._cut_off(error)

    def close(self) -> None:
        """Forget the call, which is over."""
        self._is_cut_off = True
        if self._ending is not None:
            self._ending.cancel()


class OpenCalls:
    """The streams that a server has open.

    Args:
        verifier: tells whose credential has ended.
        connections: has a place for each, None when they are not counted.
    """

    def __init__(self, *, verifier: TokenVerifier, connections: Connections | None) -> None:
        self._verifier = verifier
        self._connections = connections
        self._calls: set[OpenCall] = set()
        verifier.follow_revocations(self._look)

    def __len__(self) -> int:
        """Return how many are open."""
        return len(self._calls)

    async def add(self, call: OpenCall) -> None:
        """Have a call ended with its credential, and let its handler find it.

        Raises:
            ResourceExhausted: LIMIT_EXCEEDED, its tenant has too many.
        """
        tenant = call.principal.tenant
        if self._connections is not None and tenant:
            await self._connections.open(tenant, call.principal.name)
        self._calls.add(call)
        bind_call(call)

    def remove(self, call: OpenCall) -> None:
        """Forget a call, which is over."""
        self._calls.discard(call)
        call.close()
        if self._connections is not None and call.principal.tenant:
            self._connections.close(call.principal.tenant)

    async def run(self) -> None:
        """End calls whose credentials expire, for ever; those that were revoked end without it."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            self._look()

    def _look(self, _: Sequence[Revocation] = ()) -> None:
        for call in list(self._calls):
            try:
                self._verifier.require_live(call.principal)
            except Unauthenticated as error:
                call.end(error)


_current: ContextVar[OpenCall] = ContextVar("twinmesh_open_call")


def current_call() -> OpenCall:
    """Return the stream that is being served.

    Raises:
        LookupError: the rpc is no stream of a known caller.
    """
    return _current.get()


def bind_call(call: OpenCall) -> None:
    """Make a stream the one that is being served in the rest of this context."""
    _current.set(call)


def _names(principal: Principal) -> dict[str, str]:
    return {"tenant": principal.tenant, "principal": principal.name}
