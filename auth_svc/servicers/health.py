"""HealthService: the whole mesh's."""

from auth_svc.peers import Peers
from auth_svc.readiness import judge
from meshkit.errors import Unavailable
from twinmesh.mesh.v1 import health_service_pb2 as pb
from twinmesh.mesh.v1 import health_service_pb2_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_RETRY_AFTER_S = 1.0


class HealthServicer(health_service_pb2_grpc.HealthServiceServicer):
    """Serves twinmesh.mesh.v1.HealthService.

    Args:
        peers: all services of the mesh, this one too.
    """

    def __init__(self, *, peers: Peers) -> None:
        self._peers = peers

    async def GetLiveness(self, request: pb.GetLivenessRequest, context: object) -> pb.GetLivenessResponse:
        """Answer."""
        return pb.GetLivenessResponse(status="ok")

    async def GetReadiness(self, request: pb.GetReadinessRequest, context: object) -> pb.GetReadinessResponse:
        """Answer when every part works, name those that fail otherwise."""
        readiness = judge(await self._peers.health())
        if readiness.failing:
            raise Unavailable(
                f"not available: {', '.join(readiness.failing)}",
                reason=ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE,
                metadata={"dependency": ",".join(readiness.failing)},
                retry_after_s=_RETRY_AFTER_S,
            )
        return pb.GetReadinessResponse(status="ok", dependencies=readiness.asked)
