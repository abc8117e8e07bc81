from collections.abc import AsyncIterator

import grpc
import nats
import pytest

from meshkit.testing import identities
from meshkit.testing.auth import TokenMint
from meshkit.testing.database import TestDatabase
from tests.rpc.twin.twin_app import FakeProfiles, Neighbours, TwinApp
from tests.store.telemetry import Recorder, recorder
from twinmesh.asset.v1 import profile_service_pb2_grpc


@pytest.fixture(scope="session")
def nats_url(quiet_nats_url: str) -> str:
    """What is announced in other databases has the same numbers as in these tests'."""
    return quiet_nats_url


@pytest.fixture
async def neighbours(
    database: TestDatabase, nats_url: str, auth_address: str, mint: TokenMint
) -> AsyncIterator[Neighbours]:
    profiles = FakeProfiles()
    server = grpc.aio.server()
    profile_service_pb2_grpc.add_ProfileServiceServicer_to_server(profiles, server)
    port = server.add_secure_port("127.0.0.1:0", identities.identity("asset_svc").server_credentials())
    await server.start()
    bus = await nats.connect(nats_url)
    yield Neighbours(database, nats_url, auth_address, f"127.0.0.1:{port}", profiles, mint, bus)
    await bus.close()
    await server.stop(0)


@pytest.fixture
async def writer(database: TestDatabase) -> AsyncIterator[Recorder]:
    async with recorder(database) as writing:
        yield writing


@pytest.fixture
async def twins(neighbours: Neighbours) -> AsyncIterator[TwinApp]:
    neighbours.has("pump-1", "pump-2")
    async with neighbours.twin_svc() as running:
        await running.ready()
        yield running
