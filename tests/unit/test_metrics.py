"""What the services' instruments tell, read as an exporter reads them."""

import asyncio
import itertools
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import grpc
import pytest
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2_grpc
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from ingest_svc.intake import Door
from ingest_svc.metrics import IngestMetrics
from ingest_svc.tenant_cache import TenantCache
from meshkit.lookups import Lookups
from meshkit.metrics import meter, metered, metering, observe_caches, reading
from meshkit.testing.clock import ManualClock
from telemetry_store.batch import Batch
from telemetry_store.commit import Commit, Stored
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.requests import WriteRequest, WriteResult
from twin_svc.metrics import TwinMetrics
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh_cli.metric_store import MetricStore
from twinmesh_cli.otlp_receiver import MetricsServicer

Values = dict[tuple[str, tuple[tuple[str, str], ...]], Any]


@pytest.fixture
def reader() -> Iterator[InMemoryMetricReader]:
    """Reads what instruments of `meter` tell."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    with metered(provider):
        yield reader
    provider.shutdown()


def told(reader: InMemoryMetricReader) -> Values:
    """Values by name and attributes; (count, sum) of distributions."""
    values: Values = {}
    data = reader.get_metrics_data()
    for resource in data.resource_metrics if data else []:
        for metric in (metric for scope in resource.scope_metrics for metric in scope.metrics):
            for point in cast(Any, metric.data.data_points):
                key = metric.name, tuple(sorted(point.attributes.items()))
                values[key] = (point.count, point.sum) if hasattr(point, "count") else point.value
    return values


def request(door: Door) -> WriteRequest:
    return WriteRequest("acme", "key:hub", None, b"." * 32, [], b"", b"", door=door)


def result(*, stored: int = 0, refused: int = 0, duplicate: bool = False) -> WriteResult:
    outcome = ingest_pb2.BatchResult(stored_samples=stored, refused_samples=refused)
    return WriteResult(outcome.SerializeToString(), duplicate=duplicate)


def samples(values: Values) -> dict[tuple[str, str], int]:
    return {
        (dict(attributes)["door"], dict(attributes)["outcome"]): value
        for (name, attributes), value in values.items()
        if name == "twinmesh.ingest.samples"
    }


def test_a_group_is_counted_by_door_and_outcome(reader: InMemoryMetricReader) -> None:
    metrics = IngestMetrics(meter())
    answers = {
        Batch(request(Door.UNARY)): result(stored=3, refused=1),
        Batch(request(Door.STREAM)): result(stored=5),
        Batch(request(Door.STREAM)): result(stored=7, refused=1, duplicate=True),
        Batch(request(Door.STREAM)): LookupError("a gap"),
    }
    commit = Commit(CommitNumbers(1, 2, 3), 8, [], "")
    metrics.group_stored(Stored(cast(Any, answers), commit), 0.25)
    values = told(reader)
    assert samples(values) == {
        ("unary", "stored"): 3,
        ("unary", "refused"): 1,
        ("stream", "stored"): 5,
        ("stream", "duplicate"): 8,
    }
    assert values["twinmesh.ingest.commit.duration", ()] == (1, 0.25)
    assert values["twinmesh.ingest.commit.samples", ()] == (1, 8)
    assert values["twinmesh.ingest.commit.batches", ()] == (1, 2)


def test_a_group_without_anything_new_is_no_commit(reader: InMemoryMetricReader) -> None:
    metrics = IngestMetrics(meter())
    answers: Any = {Batch(request(Door.UNARY)): result(stored=3, duplicate=True)}
    metrics.group_stored(Stored(answers, None), 0.25)
    assert told(reader).keys() == {("twinmesh.ingest.samples", (("door", "unary"), ("outcome", "duplicate")))}


def test_dead_letters_are_counted_by_reason_and_door(reader: InMemoryMetricReader) -> None:
    letters = {("METRIC_UNKNOWN", "unary"): 2, ("MESSAGE_MALFORMED", "mqtt"): 1}
    IngestMetrics(meter()).group_stored(Stored({}, None, letters), 0.25)
    name = "twinmesh.ingest.dead_letters"
    assert told(reader) == {
        (name, (("door", "mqtt"), ("reason", "MESSAGE_MALFORMED"))): 1,
        (name, (("door", "unary"), ("reason", "METRIC_UNKNOWN"))): 2,
    }


class Sized(SimpleNamespace):
    """A stand-in of a part: its attributes, and how many it holds."""

    def __len__(self) -> int:
        return cast(int, self.holds)


def test_parts_of_ingest_are_read_at_each_export(reader: InMemoryMetricReader) -> None:
    waiting = Sized(holds=2, samples=30, bytes=400)
    announcer = SimpleNamespace(waiting_bytes=5, left_out=6)
    streams: Any = [None] * 7
    IngestMetrics(meter()).observe(
        waiting=cast(Any, waiting),
        announcer=cast(Any, announcer),
        streams=streams,
        room=cast(Any, SimpleNamespace(is_full=True)),
    )
    told(reader)
    waiting.samples = 31
    assert told(reader) == {
        ("twinmesh.ingest.queue.batches", ()): 2,
        ("twinmesh.ingest.queue.samples", ()): 31,
        ("twinmesh.ingest.queue.bytes", ()): 400,
        ("twinmesh.ingest.announcer.queue.bytes", ()): 5,
        ("twinmesh.ingest.announcer.left_out", ()): 6,
        ("twinmesh.ingest.streams", ()): 7,
        ("twinmesh.ingest.storage_full", ()): 1,
    }


def test_parts_of_twin_are_read_at_each_export(reader: InMemoryMetricReader) -> None:
    follower = SimpleNamespace(announced_commits=1, found_commits=2, lag_s=0.5)
    metrics = TwinMetrics(meter())
    metrics.observe(fleet=cast(Any, [None] * 3), follower=cast(Any, follower), watches=cast(Any, [None] * 4))
    metrics.watcher_told(0.125)
    assert told(reader) == {
        ("twinmesh.twin.commits.applied", (("source", "announcement"),)): 1,
        ("twinmesh.twin.commits.applied", (("source", "store"),)): 2,
        ("twinmesh.twin.feed.lag", ()): 0.5,
        ("twinmesh.twin.twins", ()): 3,
        ("twinmesh.twin.watches", ()): 4,
        ("twinmesh.twin.watch.lag", ()): (1, 0.125),
    }


async def test_whose_devices_are_is_counted_when_it_is_looked_up() -> None:
    class Tenants:
        async def fetch_tenants(self, device_ids: Sequence[str]) -> Mapping[str, str]:
            return dict.fromkeys(set(device_ids) - {"absent"}, "acme")

    async with TenantCache(source=Tenants(), clock=ManualClock(0)) as cache:
        await cache.find(["a", "absent"])
        assert cache.lookups == Lookups(hits=0, misses=2)
        await cache.find(["a", "absent", "b"])
        assert cache.lookups == Lookups(hits=2, misses=3)


def test_lookups_of_caches_are_told_by_result(reader: InMemoryMetricReader) -> None:
    observe_caches(meter(), profiles=Lookups(hits=3, misses=1), tokens=Lookups(hits=2))
    by_cache = {
        (dict(attributes)["cache"], dict(attributes)["result"]): value
        for (_, attributes), value in told(reader).items()
    }
    assert by_cache == {
        ("profiles", "hit"): 3,
        ("profiles", "miss"): 1,
        ("tokens", "hit"): 2,
        ("tokens", "miss"): 0,
    }


def test_without_a_receiver_nothing_is_read() -> None:
    reads = itertools.count()
    with metering("test_svc", endpoint="", interval_ms=100):
        meter().create_observable_gauge("twinmesh.test.nothing", reading(lambda: next(reads)))
    assert next(reads) == 0


async def test_what_was_measured_last_is_exported_at_the_end(tmp_path: Path) -> None:
    def measure(port: int) -> None:
        with metering("test_svc", endpoint=f"http://127.0.0.1:{port}", interval_ms=3_600_000):
            meter().create_counter("twinmesh.test.count", unit="{thing}").add(3, {"door": "unary"})

    with MetricStore.writing(tmp_path / "metrics") as store:
        server = grpc.aio.server()
        add: Any = metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server
        add(MetricsServicer(store), server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        await asyncio.to_thread(measure, port)
        await server.stop(None)
        (kept,) = store.kept("test_svc")
    assert (kept.series.name, kept.series.unit) == ("twinmesh.test.count", "{thing}")
    assert (kept.series.attributes, kept.newest.value) == ((("door", "unary"),), 3)
    assert kept.series.process.instance


def test_a_receiver_that_does_not_answer_does_not_hold_up_the_end() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        with metering("test_svc", endpoint=endpoint, interval_ms=3_600_000):
            meter().create_counter("twinmesh.test.count").add(1)
        # The export goes on trying, and was not waited for.
        assert "OtelPeriodicExportingMetricReader" in [thread.name for thread in threading.enumerate()]
