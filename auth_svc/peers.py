"""The services of the mesh, asked for their health."""

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from auth_svc.readiness import DEPENDENCIES, WHOLE

_TIMEOUT_S = 1.0
_OPTIONS = [
    # A service that comes back is seen at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class Peers:
    """Asks services for their health (grpc.health.v1), all at once.

    Args:
        channels: by service name.
    """

    def __init__(self, *, channels: Mapping[str, grpc.aio.Channel]) -> None:
        self._stubs = {name: health_pb2_grpc.HealthStub(channel) for name, channel in channels.items()}

    async def health(self) -> Mapping[str, Mapping[str, bool | None]]:
        """Return, by service, then by `WHOLE` and dependency: serving or not, None unanswered."""
        names = (WHOLE, *DEPENDENCIES)
        answers = await asyncio.gather(
            *(self._ask(stub, name) for stub in self._stubs.values() for name in names)
        )
        by_service = zip(*[iter(answers)] * len(names), strict=True)
        return {
            service: dict(zip(names, answer, strict=True))
            for service, answer in zip(self._stubs, by_service, strict=True)
        }

    @staticmethod
    async def _ask(stub: health_pb2_grpc.HealthStub, name: str) -> bool | None:
        try:
            # types-grpcio-health-checking leaves the stub's rpcs out.
            answer = await stub.Check(  # type: ignore[attr-defined]
                health_pb2.HealthCheckRequest(service=name), timeout=_TIMEOUT_S
            )
        except grpc.aio.AioRpcError:
            return None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@asynccontextmanager
async def peers(addresses: Mapping[str, str]) -> AsyncIterator[Peers]:
    """Open channels to services and close them in the end.

    Args:
        addresses: host:port by service name.
    """
    async with AsyncExitStack() as stack:
        channels = {
            name: await stack.enter_async_context(grpc.aio.insecure_channel(address, options=_OPTIONS))
            for name, address in addresses.items()
        }
        yield Peers(channels=channels)
