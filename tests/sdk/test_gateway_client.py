"""The gateway client against a real ingest_svc: whatever happens, each sample is stored once."""

import asyncio
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rpc.ingest.neighbours import until
from tests.sdk.site import NOW_US, Site
from twinmesh_client import (
    Fenced,
    GatewayClient,
    GatewayClosed,
    Kind,
    PermissionDenied,
    RefusedBatch,
    SequenceReused,
    ServerAhead,
    ServerBehind,
    SpoolInUse,
    TokenFunctionInvalid,
    Unauthenticated,
)


async def sends(gateway: GatewayClient, value: int) -> None:
    """Add one sample, of its own time, and wait until it is durable."""
    async with gateway:
        await gateway.series("pump-1", "count", kind=Kind.INT).add(value, NOW_US + value)
        await gateway.flush()


def is_connected(gateway: GatewayClient, reconnects: int) -> bool:
    stats = gateway.stats()
    return stats.connected and stats.reconnects >= reconnects


async def stops(gateway: GatewayClient) -> None:
    """Wait until something stops a client."""
    async with gateway:
        await gateway._until(lambda: False)


async def spools_first(site: Site, value: int, *, spool: str) -> None:
    """The same, while the server is away until the sample is on disk."""
    port, site.port = site.port, 1
    async with site.gateway(spool=spool, drain_timeout=0.0) as gateway:
        await gateway.series("pump-1", "count", kind=Kind.INT).add(value, NOW_US + value)
    site.port = port
    async with site.gateway(spool=spool) as gateway:
        await gateway.flush()


async def test_samples_of_every_kind_are_durable_after_a_flush(site: Site) -> None:
    await site.start()
    times = NOW_US + np.arange(3)
    points = [(52.5, 13.4), (52.6, 13.5), (0.0, 0.0)]
    sent: dict[str, tuple[Kind, Any]] = {
        "temperature": (Kind.DOUBLE, [21.5, 0.0, -1e300]),
        "count": (Kind.INT, [-(2**63), 0, 2**63 - 1]),
        "running": (Kind.BOOL, [True, False, True]),
        "state": (Kind.STRING, ["an", "", "größer"]),
        "inlet": (Kind.POINT, points),
    }
    async with site.gateway() as gateway:
        for metric, (kind, values) in sent.items():
            series = gateway.series("pump-1", metric, kind=kind)
            await series.add_many(times, values)
            await series.add(values[0], NOW_US + 9)
        await gateway.flush()
        stats = gateway.stats()
        assert (stats.durable_samples, stats.refused_samples, stats.backlog_batches) == (20, 0, 0)
        assert not stats.stopped
        found = await site.samples()
    for metric, (kind, values) in sent.items():
        stored = [found["pump-1", metric, NOW_US + place] for place in (0, 1, 2, 9)]
        if kind is Kind.POINT:
            assert [point[:2] for point in stored] == [*points, points[0]]
        else:
            assert stored == [*values, values[0]]


async def test_now_and_datetimes(site: Site) -> None:
    await site.start()
    at = datetime.fromtimestamp(NOW_US // 1_000_000, tz=UTC)
    async with site.gateway() as gateway:
        temperature = gateway.series("pump-1", "temperature", unit="°C")
        assert gateway.series("pump-1", "temperature", unit="°C") is temperature
        await temperature.add(1.0, at)
        await temperature.add(2.0)
    values = {time: value for (*_, time), value in (await site.samples()).items()}
    assert values.pop(NOW_US // 1_000_000 * 1_000_000) == 1.0
    ((now_us, value),) = values.items()
    assert value == 2.0
    assert now_us >= NOW_US


async def test_samples_from_before_the_server_was_there(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with site.gateway(drain_timeout=0.0) as gateway:
        count = gateway.series("pump-1", "count", kind=Kind.INT)
        await count.add(1, NOW_US)
        await gateway.persist()
        assert gateway.stats().backlog_batches == 1
        await count.add(2, NOW_US + 1)
    assert "left with 2 batches" in caplog.text
    caplog.clear()
    await site.start()
    async with site.gateway() as gateway:
        await gateway.series("pump-1", "count", kind=Kind.INT).add(3, NOW_US + 2)
    assert "left with" not in caplog.text
    assert sorted((await site.samples()).values()) == [1, 2, 3]
    assert await site.count() == 3


async def test_a_restarted_server_is_a_pause(site: Site) -> None:
    await site.start()
    sent = 0
    restarted = asyncio.Event()
    async with site.gateway() as gateway:
        count = gateway.series("pump-1", "count", kind=Kind.INT)

        async def send() -> None:
            nonlocal sent
            while not restarted.is_set():
                await count.add(sent, NOW_US + sent)
                sent += 1
                if sent % 10 == 0:
                    await gateway.persist()

        task = asyncio.create_task(send())
        for number in range(3):
            await until(lambda least=number: is_connected(gateway, least))  # type: ignore[misc]
            await site.stop()
            await site.start()
        restarted.set()
        await task
        await gateway.flush()
    assert len(await site.samples()) == await site.count() == sent


async def test_streams_that_are_sent_away_go_on_elsewhere(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "twinmesh_client")
    await site.start(max_stream_lifetime_seconds=1)
    sent = 0
    async with site.gateway() as gateway:
        count = gateway.series("pump-1", "count", kind=Kind.INT)
        while gateway.stats().reconnects < 3:
            await count.add(sent, NOW_US + sent)
            await gateway.flush()
            sent += 1
    assert "the server asked to move" in caplog.text
    assert len(await site.samples()) == await site.count() == sent


async def test_throttled_batches_are_sent_again(site: Site) -> None:
    await site.start()
    site.assets.refusing = True
    async with site.gateway() as gateway:
        count = gateway.series("pump-1", "count", kind=Kind.INT)
        for number in range(5):
            await count.add(number, NOW_US + number)
            await gateway.persist()
        await until(lambda: gateway.stats().throttles >= 2)
        site.assets.refusing = False
        await gateway.flush()
        assert gateway.stats().reconnects == 0
    assert len(await site.samples()) == await site.count() == 5


async def test_refusals_are_told_and_counted(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    await site.start()
    told: list[RefusedBatch] = []
    async with site.gateway(on_refused=told.append) as gateway:
        await gateway.series("pump-1", "count", kind=Kind.INT).add(1, NOW_US)
        await gateway.series("nowhere", "count", kind=Kind.INT).add_many([NOW_US, NOW_US + 1], [1, 2])
        await gateway.series("pump-1", "temperature", unit="bar").add(1.0, NOW_US)
        await gateway.series("pump-1", "temperature").add(1.0, 1)
        await gateway.flush()
        stats = gateway.stats()
        assert (stats.durable_samples, stats.refused_samples) == (1, 4)
    assert "nowhere/count: DEVICE_UNKNOWN" in caplog.text
    assert "(2 samples)" in caplog.text
    assert sum(batch.refused_samples for batch in told) == 4
    assert {
        (refusal.device_id, refusal.reason, refusal.samples) for batch in told for refusal in batch.refusals
    } == {
        ("nowhere", "DEVICE_UNKNOWN", 2),
        ("pump-1", "UNIT_MISMATCH", 1),
        ("pump-1", "TIME_OUT_OF_WINDOW", 1),
    }


async def test_a_wrong_series_is_no_flood_of_warnings(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    await site.start()
    async with site.gateway() as gateway:
        for number in range(5):
            await gateway.series("nowhere", "count", kind=Kind.INT).add(number, NOW_US + number)
            await gateway.flush()
    warned = [line for line in caplog.messages if "samples were refused" in line]
    assert len(warned) == 2, "the first one, and what is left at the end"
    assert "(1 samples)" in warned[0]
    assert "(4 samples)" in warned[1]


async def test_values_that_the_server_would_refuse_are_refused_at_add(site: Site) -> None:
    async with site.gateway(drain_timeout=0.0) as gateway:
        count = gateway.series("pump-1", "count", kind=Kind.INT)
        temperature = gateway.series("pump-1", "temperature")
        with pytest.raises(TypeError, match=r"^pump-1/count: 1.5 is not an integer"):
            await count.add(1.5)
        with pytest.raises(TypeError, match=r"^pump-1/count: a time is a datetime"):
            await count.add(1, 1.5)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match=r"^pump-1/temperature: nan is not a finite number"):
            await temperature.add(float("nan"))
        with pytest.raises(ValueError, match=r"^pump-1/temperature: value 1 is inf"):
            await temperature.add_many([1, 2], [0.0, float("inf")])
        with pytest.raises(ValueError, match=r"^pump-1/state: a string has half of a surrogate"):
            await gateway.series("pump-1", "state", kind=Kind.STRING).add_many([1], ["\ud800"])
        assert gateway.stats().buffered_samples == 0


async def test_a_refusal_that_was_not_told_is_told_at_the_next_start(site: Site) -> None:
    """The server committed, the client crashed before it heard of it."""
    await site.start()
    async with site.gateway(drain_timeout=0.0) as gateway:
        await gateway.series("nowhere", "count", kind=Kind.INT).add(1, NOW_US)
        await gateway.persist()
    shutil.copytree(site.folder / "spool", site.folder / "before")
    async with site.gateway():
        pass
    told: list[RefusedBatch] = []
    async with site.gateway(spool="before", on_refused=told.append) as gateway:
        await gateway.flush()
    assert [batch.refusals[0].reason for batch in told] == ["DEVICE_UNKNOWN"]


async def test_a_second_client_of_the_same_writer_fences_the_first(site: Site) -> None:
    await site.start()
    await sends(site.gateway(), 1)
    shutil.copytree(site.folder / "spool", site.folder / "copy")
    first = site.gateway()
    await first.__aenter__()
    await until(lambda: first.stats().connected)
    async with site.gateway(spool="copy") as second:
        await until(lambda: second.stats().connected)
        with pytest.raises(Fenced, match="stop it"):
            await first._until(lambda: False)
        await second.series("pump-1", "count", kind=Kind.INT).add(2, NOW_US)
        await second.flush()
        assert second.stats().reconnects == 0
    with pytest.raises(Fenced):
        await first.__aexit__(None, None, None)


async def test_an_old_copy_of_a_spool_stops_the_client(site: Site) -> None:
    await site.start()
    await sends(site.gateway(), 1)
    for name in ("old", "used"):
        shutil.copytree(site.folder / "spool", site.folder / name)
    await sends(site.gateway(), 2)
    with pytest.raises(ServerAhead, match="old copy"):
        await stops(site.gateway(spool="old"))
    with pytest.raises(SequenceReused):
        await spools_first(site, 3, spool="used")
    assert sorted((await site.samples()).values()) == [1, 2]


async def test_a_server_that_lost_what_it_acknowledged_stops_the_client(site: Site) -> None:
    await site.start()
    await sends(site.gateway(), 1)
    other_tenant = site.mint.token(tenant="other", permissions=("telemetry:write",))
    with pytest.raises(ServerBehind, match="another server or tenant"):
        await sends(site.gateway(token=other_tenant), 2)


async def test_what_a_token_does_not_allow(site: Site) -> None:
    await site.start()
    with pytest.raises(PermissionDenied, match=r"telemetry:write"):
        await sends(site.gateway(token=site.token(permissions=())), 1)
    with pytest.raises(Unauthenticated):
        await sends(site.gateway(token="no-token"), 2)
    await sends(site.gateway(), 3)
    with pytest.raises(PermissionDenied, match="another user"):
        await sends(site.gateway(token=site.token(subject="somebody")), 4)
    async with site.gateway():
        pass
    assert sorted((await site.samples()).values()) == [1, 2, 3, 4], "nothing was deleted from the spool"


async def test_a_token_is_asked_for_at_each_connect(site: Site) -> None:
    await site.start()
    answers = iter([None, "no-token"])

    async def token() -> str:
        answer = next(answers, site.token())
        if answer is None:
            raise OSError("the token's server is away")
        return answer

    async with site.gateway(token=token) as gateway:
        await gateway.series("pump-1", "count", kind=Kind.INT).add(1, NOW_US)
        await gateway.flush()
    assert await site.count() == 1


async def test_a_token_comes_from_a_file(site: Site) -> None:
    await site.start()
    await sends(site.gateway(token=f"{site.token()}\n"), 1)

    async def token() -> str:
        return f"{site.token()}\n"

    await sends(site.gateway(token=token), 2)
    assert await site.count() == 2


async def test_what_is_no_token_function_stops_the_client(site: Site) -> None:
    async def nothing() -> None:
        pass

    for function, why in [(site.token, "is not async"), (nothing, "returns no str")]:
        gateway = site.gateway(token=function, drain_timeout=0.0)
        with pytest.raises(TokenFunctionInvalid, match=why):
            await stops(gateway)
        assert gateway.stats().stopped.startswith("TokenFunctionInvalid: the token function")


async def test_a_full_spool_makes_add_wait(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    async with site.gateway(max_batch_bytes=65_536, max_spool_bytes=4 * 65_536) as gateway:
        temperature = gateway.series("pump-1", "temperature")
        samples = 40_000
        adding = asyncio.create_task(temperature.add_many(NOW_US + np.arange(samples), np.zeros(samples)))
        await until(lambda: gateway.stats().backlog_bytes > 2 * 65_536)
        await until(lambda: "waiting until the server took some" in caplog.text)
        assert not adding.done()
        stats = gateway.stats()
        assert stats.backlog_bytes <= 4 * 65_536
        assert stats.buffered_samples * 16 <= 2 * 65_536
        await site.start()
        await adding
        await gateway.flush()
        assert gateway.stats().dropped_samples == 0
    assert await site.count() == samples


async def test_dropping_the_oldest_keeps_the_newest_and_counts(
    site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {"max_batch_bytes": 65_536, "max_spool_bytes": 4 * 65_536}
    async with site.gateway(**options, when_full="drop_oldest", drain_timeout=0.0) as gateway:
        temperature = gateway.series("pump-1", "temperature")
        samples = 40_000
        await temperature.add_many(NOW_US + np.arange(samples), np.zeros(samples))
        await gateway.persist()
        dropped = gateway.stats().dropped_samples
        assert 0 < dropped < samples
    warned = [line for line in caplog.messages if "dropped the oldest" in line]
    assert len(warned) == 2, "the first one, and what is left at the end"
    await site.start()
    async with site.gateway(**options) as gateway:
        await gateway.flush()
        assert gateway.stats().durable_samples == samples - dropped
    times = sorted(time for *_, time in await site.samples())
    assert times == [*range(NOW_US + dropped, NOW_US + samples)]
    assert await site.count() == samples - dropped


async def test_one_spool_one_client_and_no_adding_after_the_end(site: Site) -> None:
    async with site.gateway(drain_timeout=0.0) as gateway:
        temperature = gateway.series("pump-1", "temperature")
        with pytest.raises(SpoolInUse) as told:
            async with site.gateway():
                pass
        assert told.value.__suppress_context__, "the lock's own error would be shown first"
    with pytest.raises(GatewayClosed):
        await temperature.add(1.0)
    with pytest.raises(GatewayClosed):
        await gateway.flush()


async def test_leaving_by_cancellation_loses_nothing(site: Site) -> None:
    added = asyncio.Event()

    async def run() -> None:
        async with site.gateway(max_age=60.0) as gateway:
            await gateway.series("pump-1", "count", kind=Kind.INT).add(1, NOW_US)
            added.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(run())
    await added.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await site.start()
    async with site.gateway():
        pass
    assert await site.count() == 1


@pytest.mark.parametrize(
    ("device_id", "metric", "unit"),
    [
        ("Pump 1", "count", ""),
        ("pump-1", "0count", ""),
        ("pump-1\n", "count", ""),
        ("pump-1", "count", "x" * 33),
    ],
)
async def test_names_that_the_contract_does_not_allow(
    site: Site, device_id: str, metric: str, unit: str
) -> None:
    async with site.gateway(drain_timeout=0.0) as gateway:
        with pytest.raises(ValueError, match=r"does not match|characters"):
            gateway.series(device_id, metric, unit=unit)


@pytest.mark.parametrize(
    "options",
    [
        {"token": None},
        {"token": " \n"},
        {"token": "two words"},
        {"token": "schlüssel"},
        {"name": "line 4"},
        {"max_batch_bytes": 1 << 21},
        {"max_spool_bytes": 1 << 19},
        {"when_full": "drop"},
    ],
)
def test_options_that_cannot_be(options: dict[str, Any], site: Site) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        site.gateway(**options)


@pytest.mark.parametrize(
    "target",
    [
        "",
        "mesh.example",
        ":443",
        "https://mesh.example:443",
        "mesh.example:443/",
        "mesh:99999",
        "::1:80",
        "a b:1",
    ],
)
def test_targets_that_cannot_be(target: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="host:port"):
        GatewayClient(target, token="t", name="gw", spool=tmp_path)


@pytest.mark.parametrize("target", ["mesh.example:443", "127.0.0.1:1", "[::1]:8080", "gateway_1:65535"])
def test_targets(target: str, tmp_path: Path) -> None:
    GatewayClient(target, token="t", name="gw", spool=tmp_path)
