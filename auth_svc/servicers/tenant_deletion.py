"""TenantDeletionService."""

from auth_svc.servicers.pages import next_page_token, position
from auth_svc.tenant_deletion import TenantDeletions
from meshkit import paging
from meshkit.identity import current_principal
from twinmesh.auth.v1 import tenant_deletion_service_pb2 as pb
from twinmesh.auth.v1 import tenant_deletion_service_pb2_grpc

_QUESTION = ["closed tenants"]
_DEFAULT_PAGE = 1_000
_LONGEST_PAGE = 10_000


class TenantDeletionServicer(tenant_deletion_service_pb2_grpc.TenantDeletionServiceServicer):
    """Serves twinmesh.auth.v1.TenantDeletionService.

    Args:
        deletions: the rules.
    """

    def __init__(self, *, deletions: TenantDeletions) -> None:
        self._deletions = deletions

    async def ListClosedTenants(
        self, request: pb.ListClosedTenantsRequest, context: object
    ) -> pb.ListClosedTenantsResponse:
        """List those that are suspended or deleted."""
        found, more = await self._deletions.page(
            current_principal().subject,
            after=position(_QUESTION, request.page_token),
            limit=paging.page_size(request.page_size, default=_DEFAULT_PAGE, maximum=_LONGEST_PAGE),
        )
        return pb.ListClosedTenantsResponse(
            tenants=[
                pb.ClosedTenant(id=each.id, deletion_due=each.deletion_due, reported=each.reported)
                for each in found
            ],
            next_page_token=next_page_token(_QUESTION, found[-1].id if more else None),
        )

    async def ReportTenantDeleted(
        self, request: pb.ReportTenantDeletedRequest, context: object
    ) -> pb.ReportTenantDeletedResponse:
        """Note that the caller has nothing of one any more."""
        await self._deletions.report(current_principal().subject, request.id)
        return pb.ReportTenantDeletedResponse()
