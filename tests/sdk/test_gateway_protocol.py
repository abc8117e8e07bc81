"""The gateway client against a model of the contract that throttles, ends streams and loses Acks."""

import os
import random
from pathlib import Path

import numpy as np
import pytest
import uvloop

from tests.rpc.ingest.neighbours import until
from tests.sdk import model_ingest
from tests.sdk.model_ingest import ModelIngest, serving
from twinmesh_client import GatewayClient, SequenceGap, Unauthenticated, connection, errors

_SEEDS = 50 if os.environ.get("TWINMESH_TEST_SCALE") == "soak" else 4
_SERIES = 7


@pytest.fixture(autouse=True)
def _short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connection, "_BACK_OFF", lambda _state: 0.001)


def times_of(model: ModelIngest, alias: int) -> list[int]:
    """Times of a series in the order in which they were committed."""
    found = []
    for batch in model.batches.values():
        start = 0
        for series, length in zip(batch.columns.series, batch.columns.run_lengths, strict=True):
            if series == alias:
                found += batch.columns.times[start : start + length]
            start += length
    return found


@pytest.mark.parametrize("seed", range(_SEEDS))
async def test_whatever_the_server_may_do_each_sample_is_committed_once_and_in_order(
    seed: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    faults = dict.fromkeys(["busy", "unknown_alias", "go_away", "unavailable", "ended", "silent"], 0.05)
    model = ModelIngest(random.Random(seed), faults)
    async with (
        serving(model) as address,
        GatewayClient(
            address, token="t", name="gw", spool=tmp_path, max_age=0.001, drain_timeout=60
        ) as gateway,
    ):
        series = [gateway.series(f"pump-{place}", "flow") for place in range(_SERIES)]
        for number in range(200):
            await series[number % _SERIES].add(float(number), number)
            await gateway.persist()
        await gateway.flush()
        assert gateway.stats().durable_samples == 200
    assert model.wrong == []
    assert [times_of(model, alias) for alias in range(_SERIES)] == [
        [*range(alias, 200, _SERIES)] for alias in range(_SERIES)
    ]
    assert len(model.opens) > 3
    assert "UNAVAILABLE" in caplog.text
    assert "INTERNAL" not in caplog.text, "grpc's own word hid the server's"


def dropping(address: str, spool: Path) -> GatewayClient:
    """Return a client whose spool is full after some 16,000 samples."""
    return GatewayClient(
        address,
        token="t",
        name="gw",
        spool=spool,
        max_batch_bytes=65_536,
        max_spool_bytes=4 * 65_536,
        when_full="drop_oldest",
        drain_timeout=60,
    )


async def test_batches_dropped_while_in_flight_become_empty_ones_after_another_open(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = ModelIngest(random.Random(0), {"busy": 1.0})
    samples = 40_000
    async with serving(model) as address, dropping(address, tmp_path) as gateway:
        flow = gateway.series("pump-1", "flow")
        await flow.add_many(np.arange(100), np.zeros(100))
        await gateway.persist()
        await until(lambda: gateway.stats().throttles > 2)
        await flow.add_many(np.arange(100, samples), np.zeros(samples - 100))
        await gateway.persist()
        dropped = gateway.stats().dropped_samples
        assert dropped >= 100
        model.faults = {}
        await gateway.flush()
        assert gateway.stats().durable_samples == samples - dropped
    assert model.wrong == []
    assert len(model.opens) > 1, "batch 1 was sent with its content on the first stream"
    assert times_of(model, 0) == [*range(dropped, samples)]
    assert not model.batches[1].columns.times
    assert "trying again" not in caplog.text, "the client opened anew by itself"


async def test_committed_batches_dropped_while_throttled_are_left_out_after_another_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(model_ingest, "MAX_BATCHES", 2)
    model = ModelIngest(random.Random(0), acknowledges=False)
    samples = 40_000
    async with serving(model) as address, dropping(address, tmp_path) as gateway:
        flow = gateway.series("pump-1", "flow")
        for number in range(2):
            await flow.add(0.0, number)
            await gateway.persist()
        await until(lambda: len(model.batches) == 2)
        model.is_away = True
        await until(lambda: model.ended > 0)
        model.acknowledges, model.faults, model.is_away = True, {"busy": 1.0}, False
        await until(lambda: gateway.stats().throttles > 0)
        await flow.add_many(np.arange(2, samples), np.zeros(samples - 2))
        await gateway.persist()
        dropped = gateway.stats().dropped_samples
        assert dropped > 2
        model.faults = {}
        await gateway.flush()
    assert model.wrong == []
    assert "no answer" not in caplog.text, "what was sent beyond the refused batch was dropped there"
    assert times_of(model, 0) == [0, 1, *range(dropped, samples)]


async def test_a_gap_is_a_reason_to_open_anew(tmp_path: Path) -> None:
    model = ModelIngest(random.Random(0))
    async with (
        serving(model) as address,
        GatewayClient(address, token="t", name="gw", spool=tmp_path, max_age=0.001) as gateway,
    ):
        flow = gateway.series("pump-1", "flow")
        for number in range(3):
            model.gaps = 1
            await flow.add(0.0, number)
            await gateway.flush()
    assert model.wrong == []
    assert times_of(model, 0) == [0, 1, 2]
    assert len(model.opens) == 4


async def test_a_gap_twice_in_a_row_stops_the_client(tmp_path: Path) -> None:
    model = ModelIngest(random.Random(0), gaps=2)
    async with serving(model) as address:
        gateway = GatewayClient(address, token="t", name="gw", spool=tmp_path, max_age=0.001)
        await gateway.__aenter__()
        await gateway.series("pump-1", "flow").add(0.0, 1)
        with pytest.raises(SequenceGap, match="Keep the spool"):
            await gateway.flush()
        with pytest.raises(SequenceGap):
            await gateway.__aexit__(None, None, None)
        assert len(model.opens) == 2
        async with GatewayClient(address, token="t", name="gw", spool=tmp_path):
            pass
    assert times_of(model, 0) == [1], "nothing was given up"


async def test_a_suspended_tenants_gateway_keeps_its_spool_and_goes_on_when_it_is_resumed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(errors, "_SUSPENDED_RETRY_S", 0.001)
    monkeypatch.setattr(errors, "_REVOKED_RETRY_S", 0.001)
    model = ModelIngest(random.Random(0))
    async with (
        serving(model) as address,
        GatewayClient(
            address, token="tmk_key", name="gw", spool=tmp_path, max_age=0.001, drain_timeout=60
        ) as gateway,
    ):
        series = gateway.series("pump-1", "flow")
        await series.add(0.0, 1)
        await gateway.flush()
        model.is_suspended = True
        await until(lambda: model.refused > 2)
        await series.add(1.0, 2)
        await gateway.persist()
        assert gateway.stats().durable_samples == 1
        assert "it is suspended; until then the spool keeps all" in caplog.text
        model.is_suspended = False
        await gateway.flush()
    assert times_of(model, 0) == [1, 2]
    assert model.wrong == []


async def test_a_revoked_credential_stops_the_client_when_another_stream_is_refused_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(errors, "_REVOKED_RETRY_S", 0.001)
    model = ModelIngest(random.Random(0))
    async with serving(model) as address:
        gateway = GatewayClient(address, token="t", name="gw", spool=tmp_path, max_age=0.001)
        await gateway.__aenter__()
        series = gateway.series("pump-1", "flow")
        await series.add(0.0, 1)
        await gateway.flush()
        model.is_revoked = True
        await until(lambda: model.ended >= 2)
        with pytest.raises(Unauthenticated):
            await gateway.flush()
        with pytest.raises(Unauthenticated):
            await gateway.__aexit__(None, None, None)


async def test_the_next_server_may_remember_fewer_outcomes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = model_ingest.OUTCOMES_KEPT
    monkeypatch.setattr(model_ingest, "OUTCOMES_KEPT", 10 * few)
    model = ModelIngest(random.Random(0))
    async with (
        serving(model) as address,
        GatewayClient(address, token="t", name="gw", spool=tmp_path, max_age=0.001) as gateway,
    ):
        flow = gateway.series("pump-1", "flow")
        for number in range(2 * few):
            await flow.add(0.0, number)
            await gateway.flush()
        monkeypatch.setattr(model_ingest, "OUTCOMES_KEPT", few)
        model.is_away = True
        await until(lambda: not gateway.stats().connected)
        model.is_away = False
        await flow.add(0.0, 2 * few)
        await gateway.flush()
    assert model.wrong == []
    assert times_of(model, 0) == [*range(2 * few + 1)]


def test_on_uvloop(tmp_path: Path) -> None:
    async def run() -> None:
        model = ModelIngest(random.Random(1), {"busy": 0.2, "unavailable": 0.1})
        async with serving(model) as address:
            async with GatewayClient(address, token="t", name="gw", spool=tmp_path) as gateway:
                flow = gateway.series("pump-1", "flow")
                for number in range(20):
                    await flow.add(0.0, number)
                    await gateway.persist()
            assert gateway.stats().backlog_batches == 0
        assert times_of(model, 0) == [*range(20)]

    uvloop.run(run())
