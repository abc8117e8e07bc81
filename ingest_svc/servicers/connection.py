"""ConnectionService: what other processes have open, in and out of the count."""

from typing import Any
from uuid import UUID

from ingest_svc.connections import ConnectionLimits
from meshkit.connections import Refused, Wanted
from twinmesh.ingest.v1 import connection_service_pb2 as pb
from twinmesh.ingest.v1 import connection_service_pb2_grpc


class ConnectionServicer(connection_service_pb2_grpc.ConnectionServiceServicer):
    """Serves twinmesh.ingest.v1.ConnectionService.

    Args:
        limits: the rules.
    """

    def __init__(self, *, limits: ConnectionLimits) -> None:
        self._limits = limits

    async def HoldConnections(
        self, request: pb.HoldConnectionsRequest, context: Any
    ) -> pb.HoldConnectionsResponse:
        held = await self._limits.hold(
            UUID(request.holder),
            [Wanted(each.tenant, each.connections) for each in request.tenants],
            [Refused(each.tenant, each.principal, each.connections) for each in request.refused],
        )
        return pb.HoldConnectionsResponse(
            tenants=[
                pb.HeldConnections(granted=granted, used=used, limit=limit) for granted, used, limit in held
            ]
        )
