"""The health of the whole mesh, from what its services say."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from auth_svc.peers import TO_A_SERVING_ONE, Peers
from auth_svc.readiness import WHOLE
from meshkit.channels import mutual_channel
from meshkit.testing import identities
from meshkit.testing.database import TestDatabase
from tests.rpc.auth_app import AuthApp, error_info, running_auth, status_of, until
from twinmesh.mesh.v1 import health_service_pb2 as pb

_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_PEERS = ("asset_address", "ingest_address", "twin_address")


class _Neighbours:
    """The other three services, as far as their health goes."""

    def __init__(self) -> None:
        self.addresses: dict[str, str] = {}
        self._servicers: dict[str, health.aio.HealthServicer] = {}
        self._servers: dict[str, grpc.aio.Server] = {}

    async def start(self, name: str) -> None:
        # A name is that of a service's setting; more processes of it have a number behind.
        service = f"{name.partition('_')[0]}_svc"
        servicer = health.aio.HealthServicer()
        server = grpc.aio.server()
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
        port = server.add_secure_port(
            self.addresses.get(name, "127.0.0.1:0"), identities.identity(service).server_credentials()
        )
        self.addresses[name] = f"127.0.0.1:{port}"
        self._servicers[name], self._servers[name] = servicer, server
        await self.say(name, postgresql=True, nats=True)
        await server.start()

    async def say(self, name: str, *, serving: bool | None = None, **dependencies: bool) -> None:
        for dependency, works in dependencies.items():
            await self._servicers[name].set(dependency, _SERVING if works else _NOT_SERVING)
        whole = all(dependencies.values()) if serving is None else serving
        await self._servicers[name].set("", _SERVING if whole else _NOT_SERVING)

    async def stop(self, name: str) -> None:
        await self._servers.pop(name).stop(0)

    async def stop_all(self) -> None:
        for name in list(self._servers):
            await self.stop(name)


@asynccontextmanager
async def _started() -> AsyncIterator[_Neighbours]:
    neighbours = _Neighbours()
    try:
        for name in _PEERS:
            await neighbours.start(name)
        yield neighbours
    finally:
        await neighbours.stop_all()


@pytest.fixture
async def neighbours() -> AsyncIterator[_Neighbours]:
    async with _started() as started:
        yield started


@pytest.fixture
async def auth(database: TestDatabase, neighbours: _Neighbours) -> AsyncIterator[AuthApp]:
    async with running_auth(database, peers=neighbours.addresses) as running:
        yield running


async def _failing(auth: AuthApp) -> str:
    try:
        answer = await auth.health.GetReadiness(pb.GetReadinessRequest())
    except grpc.aio.AioRpcError as error:
        refused = error
    else:
        assert answer.status == "ok"
        return ""
    status = status_of(refused)
    info = error_info(status)
    assert (refused.code(), info.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
    assert all(name in status.message for name in info.metadata["dependency"].split(","))
    failing: str = info.metadata["dependency"]
    return failing


async def test_alive_means_answering(auth: AuthApp) -> None:
    answer = await auth.health.GetLiveness(pb.GetLivenessRequest())
    assert answer.status == "ok"


async def test_ready_names_every_part_that_was_asked(auth: AuthApp) -> None:
    answer = await auth.health.GetReadiness(pb.GetReadinessRequest())
    assert answer.status == "ok"
    assert list(answer.dependencies) == [
        "asset_svc",
        "auth_svc",
        "ingest_svc",
        "nats",
        "postgresql",
        "twin_svc",
    ]


async def test_a_broken_dependency_is_named_once(auth: AuthApp, neighbours: _Neighbours) -> None:
    await neighbours.say("ingest_address", postgresql=True, nats=False)
    await neighbours.say("asset_address", postgresql=True, nats=False)
    assert await _failing(auth) == "nats"
    await neighbours.say("ingest_address", postgresql=True, nats=True)
    await neighbours.say("asset_address", postgresql=True, nats=True)
    assert await _failing(auth) == ""


async def test_dead_services_are_named_until_they_are_back(auth: AuthApp, neighbours: _Neighbours) -> None:
    await neighbours.stop("twin_address")
    await neighbours.say("ingest_address", postgresql=True, nats=False)
    assert await _failing(auth) == "nats,twin_svc"
    await neighbours.say("ingest_address", postgresql=True, nats=True)
    await neighbours.start("twin_address")

    async def ready() -> bool:
        return await _failing(auth) == ""

    await until(ready)


async def test_one_process_that_serves_is_enough(database: TestDatabase, neighbours: _Neighbours) -> None:
    await neighbours.start("ingest_address-2")
    together = f"{neighbours.addresses['ingest_address']}, {neighbours.addresses['ingest_address-2']}"
    peers = {**{name: neighbours.addresses[name] for name in _PEERS}, "ingest_address": together}
    async with running_auth(database, peers=peers) as auth:
        assert await _failing(auth) == ""
        await neighbours.say("ingest_address", postgresql=True, nats=False)
        assert await _failing(auth) == ""
        await neighbours.stop("ingest_address")
        assert await _failing(auth) == ""
        await neighbours.say("ingest_address-2", postgresql=True, nats=False)
        assert await _failing(auth) == "nats"
        await neighbours.stop("ingest_address-2")
        assert await _failing(auth) == "ingest_svc"


@pytest.mark.parametrize("connecting", ["ingest_address", "ingest_address-2"])
async def test_a_process_that_serves_before_it_has_all_its_connections_fails_nothing(
    database: TestDatabase, neighbours: _Neighbours, connecting: str
) -> None:
    await neighbours.start("ingest_address-2")
    together = f"{neighbours.addresses['ingest_address']},{neighbours.addresses['ingest_address-2']}"
    peers = {**{name: neighbours.addresses[name] for name in _PEERS}, "ingest_address": together}
    async with running_auth(database, peers=peers) as auth:
        await neighbours.say(connecting, serving=True, postgresql=True, nats=False)
        assert await _failing(auth) == ""


async def test_a_name_may_stand_for_several_processes(neighbours: _Neighbours) -> None:
    await neighbours.start("ingest_address-2")
    one, another = neighbours.addresses["ingest_address"], neighbours.addresses["ingest_address-2"]
    # As a name with two addresses would be resolved.
    async with mutual_channel(
        f"ipv4:{one},{another}",
        service="ingest_svc",
        identity=identities.identity("auth_svc"),
        options=TO_A_SERVING_ONE,
    ) as channel:
        mesh = Peers(channels={"ingest_svc": [channel]})

        async def answers() -> set[bool | None]:
            return {(await mesh.health())["ingest_svc"][WHOLE] for _ in range(6)}

        assert await answers() == {True}
        await neighbours.say("ingest_address-2", postgresql=True, nats=False)

        async def settled() -> bool:
            return await answers() == {True}

        await until(settled)
        await neighbours.stop("ingest_address")

        async def unanswered() -> bool:
            return await answers() == {None}

        await until(unanswered)


async def test_its_own_database_counts_too(auth: AuthApp) -> None:
    async def failing() -> bool:
        return await _failing(auth) == "postgresql"

    async def ready() -> bool:
        return await _failing(auth) == ""

    async with auth.without_database():
        await until(failing)
    await until(ready)


async def test_who_asks_nothing_of_it_is_served_without_a_credential(auth: AuthApp) -> None:
    stub = health_pb2_grpc.HealthStub(auth.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=""))  # type: ignore[attr-defined]
    assert answer.status == _SERVING
