"""Room for the requests that a process works on at once, so that none of its callers takes its memory.

A message may have megabytes, and while a database stands still each waits with what was made of it. What came
counts from when its caller is known until the call is over; before that it is what the transport holds. With
what is made of it a request takes some times as much. Batches of gateway streams have budgets of their own,
which last until they are durable.
"""

from collections.abc import Callable
from functools import partial

from meshkit.errors import ResourceExhausted
from meshkit.shares import Shares
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

REQUEST_BYTES = 256 * 1024 * 1024
# What a call takes besides its message: thousands of small ones are no less.
CALL_BYTES = 4 * 1024
_RETRY_S = 1.0


class RequestMemory:
    """The room, of which each tenant has a share."""

    def __init__(self, limit: int = REQUEST_BYTES) -> None:
        self._shares = Shares(limit)

    @property
    def used(self) -> int:
        """Bytes of the requests that are worked on now."""
        return self._shares.used

    def take(self, whose: str, size: int) -> Callable[[], None]:
        """Take room for a request, and return what gives it back, to be called once.

        Args:
            whose: the tenant, or what stands for callers that have none.
            size: of the message, bytes.

        Raises:
            ResourceExhausted: REQUESTS_BUSY.
        """
        share = self._shares.share(whose)
        size += CALL_BYTES
        if not share.take(size):
            raise ResourceExhausted(
                f"requests of your tenant, or like this one, that this process works on have {share.used}"
                f" bytes, of {share.most} at most beside those of others; retry when some have ended",
                reason=ErrorReason.ERROR_REASON_REQUESTS_BUSY,
                metadata={
                    "limit_name": "request_bytes",
                    "limit": str(share.most),
                    "used": str(share.used),
                },
                retry_after_s=_RETRY_S,
            )
        return partial(share.give_back, size)
