"""RevocationService."""

from collections.abc import Sequence
from typing import Protocol

from meshkit import paging
from meshkit.revocations import Revocation
from twinmesh.auth.v1 import revocation_service_pb2 as pb
from twinmesh.auth.v1 import revocation_service_pb2_grpc

_DEFAULT_PAGE = 1_000
_LONGEST_PAGE = 10_000


class _List(Protocol):
    async def after(self, number: int, *, limit: int) -> Sequence[Revocation]: ...


class RevocationServicer(revocation_service_pb2_grpc.RevocationServiceServicer):
    """Serves twinmesh.auth.v1.RevocationService.

    Args:
        revocations: the list.
    """

    def __init__(self, *, revocations: _List) -> None:
        self._revocations = revocations

    async def ListRevocations(
        self, request: pb.ListRevocationsRequest, context: object
    ) -> pb.ListRevocationsResponse:
        """Answer what came after a number."""
        question = ["revocations", request.after_number]
        after = paging.number_after(question, request.page_token, first=request.after_number)
        size = paging.page_size(request.page_size, default=_DEFAULT_PAGE, maximum=_LONGEST_PAGE)
        found = await self._revocations.after(after, limit=size + 1)
        page = found[:size]
        return pb.ListRevocationsResponse(
            revocations=map(_message, page),
            next_page_token=paging.encode(question, page[-1].number) if len(found) > size else "",
        )


def _message(revocation: Revocation) -> pb.Revocation:
    message = pb.Revocation(
        number=revocation.number,
        tenant=revocation.tenant,
        kind=pb.RevocationKind.Value(f"REVOCATION_KIND_{revocation.kind.name}"),
        id=revocation.id,
    )
    message.revoke_time.FromMicroseconds(revocation.revoke_us)
    message.until_time.FromMicroseconds(revocation.until_us)
    return message
