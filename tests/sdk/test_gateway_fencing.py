"""Two clients of one writer: the one that was started last has it, and the other one stops and says so."""

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.rpc.ingest.neighbours import until
from tests.sdk.model_ingest import ModelIngest, serving
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import ingest_service_pb2_grpc as ingest_grpc
from twinmesh_client import Fenced, GatewayClient, connection


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BACK_OFF", lambda _state: 0.001)


@pytest.fixture
def model() -> ModelIngest:
    return ModelIngest(random.Random(0))


def runs(model: ModelIngest) -> list[tuple[str, bool]]:
    """Who opened the writer, and whether as one who did so before."""
    own = model.opens[0].session_id
    return [("own" if each.session_id == own else each.session_id, each.resume) for each in model.opens]


@asynccontextmanager
async def opened(address: str, like: ingest_pb2.Open, session_id: str) -> AsyncIterator[Any]:
    """Run a stream of the same writer, by hand."""
    async with grpc.aio.insecure_channel(address) as channel:
        call = ingest_grpc.IngestServiceStub(channel).StreamTelemetry()
        message = ingest_pb2.Open(writer_id=like.writer_id, session_id=session_id)
        await call.write(ingest_pb2.StreamTelemetryRequest(open=message))
        response: Any = await call.read()
        assert response.HasField("opened")
        yield call
        call.cancel()


async def sends(gateway: GatewayClient, number: int) -> None:
    await gateway.series("pump-1", "flow").add(0.0, number)
    await gateway.flush()


def times(model: ModelIngest) -> list[int]:
    return [time for batch in model.batches.values() for time in batch.columns.times]


@asynccontextmanager
async def fenced(address: str, folder: Path) -> AsyncIterator[GatewayClient]:
    """Run a client that has to stop, since another one took its writer over."""
    gateway = GatewayClient(address, token="t", name="gw", spool=folder, drain_timeout=60)
    await gateway.__aenter__()
    try:
        yield gateway
        with pytest.raises(Fenced, match="stop it"):
            await gateway._until(lambda: False)
    finally:
        with suppress(Fenced):
            await gateway.__aexit__(None, None, None)


@pytest.mark.parametrize("is_masked", [False, True])
async def test_a_client_whose_writer_was_taken_over_stops(
    model: ModelIngest, tmp_path: Path, is_masked: bool
) -> None:
    async with serving(model) as address, fenced(address, tmp_path) as gateway:
        await sends(gateway, 1)
        model.is_masked = is_masked
        async with opened(address, model.opens[0], "another") as other:
            await until(lambda: not gateway.stats().connected)
            model.is_masked = False
            await until(lambda: gateway._failure is not None)
            assert not other.done(), "it was not disturbed"
    assert runs(model) == [("own", False), ("another", False)]


async def test_a_client_that_was_away_meanwhile_does_not_take_its_writer_back(
    model: ModelIngest, tmp_path: Path
) -> None:
    async with serving(model) as address, fenced(address, tmp_path) as gateway:
        await sends(gateway, 1)
        model.is_away = True
        await until(lambda: not gateway.stats().connected)
        model.opens.append(ingest_pb2.Open(session_id="another"))
        await gateway.series("pump-1", "flow").add(0.0, 2)
        model.is_away = False
    assert runs(model) == [("own", False), ("another", False)]
    assert times(model) == [1]


async def test_a_late_open_of_its_own_is_no_reason_to_stop(model: ModelIngest, tmp_path: Path) -> None:
    async with (
        serving(model) as address,
        GatewayClient(address, token="t", name="gw", spool=tmp_path, drain_timeout=60) as gateway,
    ):
        await sends(gateway, 1)
        async with opened(address, model.opens[0], model.opens[0].session_id):
            await until(lambda: len(model.opens) == 3)
            await sends(gateway, 2)
    assert runs(model) == [("own", False), ("own", False), ("own", True)]
    assert times(model) == [1, 2]


async def test_until_it_was_answered_a_client_takes_its_writer_over(
    model: ModelIngest, tmp_path: Path
) -> None:
    model.answers_open = False
    async with (
        serving(model) as address,
        GatewayClient(address, token="t", name="gw", spool=tmp_path, drain_timeout=60) as gateway,
    ):
        await until(lambda: len(model.opens) == 1)
        model.is_away = model.answers_open = True
        await until(lambda: model.ended > 0)
        model.opens.append(ingest_pb2.Open(session_id="another"))
        model.is_away = False
        await sends(gateway, 1)
    assert runs(model) == [("own", False), ("another", False), ("own", False)]
    assert times(model) == [1]


async def test_being_fenced_is_an_answer_to_open_too(model: ModelIngest, tmp_path: Path) -> None:
    """Opened was lost, and another client took over before the next attempt."""
    model.answers_open = False
    async with serving(model) as address, fenced(address, tmp_path):
        await until(lambda: len(model.opens) == 1)
        model.answers_open = True
        model.opens.append(ingest_pb2.Open(session_id="another"))
    assert runs(model) == [("own", False), ("another", False)]
