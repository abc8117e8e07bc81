"""The gateway before several processes of one service, which come and go one by one."""

import queue
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2
from grpc_health.v1.health import HealthServicer

from gateway.settings import Upstream
from meshkit.embedded.ports import free_ports
from meshkit.testing.auth import TokenMint
from meshkit.testing.mesh import eventually
from tests.mesh.gateway import neighbours
from tests.mesh.gateway.conftest import Gateway, StartGateway
from tests.mesh.gateway.neighbours import Arrivals
from twinmesh.ingest.v1 import ingest_service_pb2 as pb
from twinmesh.ingest.v1 import ingest_service_pb2_grpc

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


class _Stream:
    """An open gateway stream."""

    def __init__(self, gateway: Gateway) -> None:
        self._requests: queue.SimpleQueue[pb.StreamTelemetryRequest | None] = queue.SimpleQueue()
        stub = ingest_service_pb2_grpc.IngestServiceStub(gateway.channel)
        self._call: Any = stub.StreamTelemetry(
            iter(self._requests.get, None), metadata=gateway.metadata, timeout=60
        )

    def send(self, sequence: int) -> None:
        """Send a batch and wait for its answer."""
        self._requests.put(pb.StreamTelemetryRequest(batch=pb.Batch(sequence=sequence)))
        assert next(self._call).ack.durable_through == sequence

    def close(self) -> None:
        """End the stream in order."""
        self._requests.put(None)
        assert list(self._call) == []
        assert self._call.code() is grpc.StatusCode.OK


@dataclass
class _Process:
    """One process of ingest_svc."""

    port: int
    arrivals: Arrivals = field(default_factory=Arrivals)
    health: HealthServicer = field(default_factory=HealthServicer)
    life: ExitStack = field(default_factory=ExitStack)

    def start(self) -> None:
        self.life.enter_context(
            neighbours.ingest_svc(self.arrivals, port=self.port, health_servicer=self.health)
        )

    @property
    def taken(self) -> int:
        return len(self.arrivals.requests)


@pytest.fixture
def processes() -> Iterator[tuple[_Process, _Process]]:
    first, second = (_Process(port) for port in free_ports(2))
    with first.life, second.life:
        first.start()
        second.start()
        yield first, second


@pytest.fixture
def fleet_gateway(start_gateway: StartGateway, processes: tuple[_Process, _Process]) -> Iterator[Gateway]:
    mint = TokenMint()
    with neighbours.auth_svc(Arrivals(), mint) as auth:
        upstreams = {
            Upstream.AUTH: [auth],
            Upstream.ASSET: [auth],
            Upstream.INGEST: [process.port for process in processes],
            Upstream.TWIN: [auth],
        }
        yield start_gateway(mint=mint, arrivals=Arrivals(), upstreams=upstreams)


def _open_streams(gateway: Gateway, count: int) -> None:
    for _ in range(count):
        stream = _Stream(gateway)
        stream.send(1)
        stream.close()


def _gets_streams(gateway: Gateway, process: _Process) -> bool:
    before = process.taken
    _open_streams(gateway, 8)
    return process.taken > before


def test_new_streams_avoid_a_process_that_says_so_and_its_own_go_on(
    fleet_gateway: Gateway, processes: tuple[_Process, _Process]
) -> None:
    first, second = processes
    for process in processes:
        eventually(partial(_gets_streams, fleet_gateway, process), "it gets streams")
    before = first.taken
    stream = _Stream(fleet_gateway)
    stream.send(1)
    leaving, staying = (first, second) if first.taken > before else (second, first)

    leaving.health.set("", _NOT_SERVING)

    eventually(lambda: not _gets_streams(fleet_gateway, leaving), "new streams go elsewhere")
    before = leaving.taken
    stream.send(2)
    assert leaving.taken == before + 1
    leaving.health.set("", _SERVING)
    eventually(lambda: _gets_streams(fleet_gateway, leaving), "it gets streams again")
    assert staying.taken
    stream.close()


def test_no_opening_fails_while_processes_restart_one_by_one(
    fleet_gateway: Gateway, processes: tuple[_Process, _Process]
) -> None:
    _open_streams(fleet_gateway, 8)
    for process in processes:
        process.life.close()
        # Also before the gateway has noticed: what cannot be connected to is tried elsewhere.
        _open_streams(fleet_gateway, 50)
        process.start()
        eventually(partial(_gets_streams, fleet_gateway, process), "it gets streams again")
