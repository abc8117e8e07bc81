"""The services of the mesh, asked for their health."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from auth_svc.readiness import DEPENDENCIES, WHOLE
from meshkit.channels import mutual_channel
from meshkit.processes import addresses_of
from meshkit.service_identity import ServiceIdentity

_TIMEOUT_S = 1.0
# To one process of those that a target stands for, whatever its health.
TO_ONE = [
    # A service that comes back is seen at once.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
]
# To those that serve; where none does, calls fail as if there were no process.
TO_A_SERVING_ONE = [
    *TO_ONE,
    (
        "grpc.service_config",
        json.dumps(
            {
                "loadBalancingConfig": [{"round_robin": {}}],
                "healthCheckConfig": {"serviceName": WHOLE},
            }
        ),
    ),
]

Answer = Mapping[str, bool | None]


class Peers:
    """Asks services for their health (grpc.health.v1), all at once.

    Args:
        channels: by service name; several where a service has several processes.
    """

    def __init__(self, *, channels: Mapping[str, Sequence[grpc.aio.Channel]]) -> None:
        self._stubs = {
            service: [health_pb2_grpc.HealthStub(channel) for channel in of_service]
            for service, of_service in channels.items()
        }

    async def health(self) -> Mapping[str, Answer]:
        """Return, by service, then by `WHOLE` and dependency: serving or not, None unanswered.

        One of its processes speaks for a service: the one that is best off.
        """
        answers = await asyncio.gather(*(self._of_service(stubs) for stubs in self._stubs.values()))
        return dict(zip(self._stubs, answers, strict=True))

    async def _of_service(self, stubs: Sequence[health_pb2_grpc.HealthStub]) -> Answer:
        return best(await asyncio.gather(*(self._of_process(stub) for stub in stubs)))

    async def _of_process(self, stub: health_pb2_grpc.HealthStub) -> Answer:
        names = (WHOLE, *DEPENDENCIES)
        return dict(zip(names, await asyncio.gather(*(self._ask(stub, name) for name in names)), strict=True))

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


def best(answers: Iterable[Answer]) -> Answer:
    """Return the answer of the process that is best off.

    One that serves, with as few dependencies away as possible: one that just started may serve
    before it is connected to all of them. Else one that answers at all.
    """

    def health(answer: Answer) -> tuple[bool, bool, int]:
        away = sum(answer[name] is False for name in DEPENDENCIES)
        return answer[WHOLE] is True, answer[WHOLE] is not None, -away

    return max(answers, key=health)


@asynccontextmanager
async def peers(addresses: Mapping[str, str], *, identity: ServiceIdentity) -> AsyncIterator[Peers]:
    """Open channels to services and close them in the end.

    Args:
        addresses: by service name; host:port with commas between processes, and a name may
            stand for several.
        identity: who asks.
    """
    async with AsyncExitStack() as stack:
        channels = {
            service: [
                await stack.enter_async_context(
                    mutual_channel(address, service=service, identity=identity, options=options)
                )
                for address in addresses_of(listed)
                for options in (TO_ONE, TO_A_SERVING_ONE)
            ]
            for service, listed in addresses.items()
        }
        yield Peers(channels=channels)
