import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.gateway_batches import SeriesLoad, batch_request, reading_request, series_defs
from bench.gateway_stream import Acks
from telemetry_store.merge import merge
from twinmesh.ingest.v1.ingest_service_pb2 import StreamTelemetryRequest
from twinmesh.type.v1 import value_pb2

SAMPLES = st.tuples(st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False))


@given(
    st.integers(1, 2**63 - 1),
    st.lists(st.tuples(st.integers(0, 99_999), st.integers(1, 3)), max_size=40),
    st.lists(SAMPLES, max_size=60),
)
def test_a_request_is_what_protobuf_reads(
    sequence: int, runs: list[tuple[int, int]], samples: list[tuple[int, float]]
) -> None:
    request = StreamTelemetryRequest.FromString(
        batch_request(
            sequence=sequence,
            series=np.array([alias for alias, _ in runs], dtype=np.uint32),
            run_lengths=np.array([length for _, length in runs], dtype=np.uint32),
            times=np.array([moment for moment, _ in samples], dtype=np.int64),
            values=np.array([value for _, value in samples], dtype=np.float64),
        )
    )
    assert request.WhichOneof("message") == "batch"
    assert request.batch.sequence == sequence
    columns = request.batch.columns
    assert list(zip(columns.series, columns.run_lengths, strict=True)) == runs
    assert list(zip(columns.times, columns.double_values, strict=True)) == samples


def test_batches_go_through_all_series_and_then_on_in_time() -> None:
    load = SeriesLoad(series=4, run_length=3, runs_per_batch=2, start_us=1_000_000)
    batches = [StreamTelemetryRequest.FromString(each).batch for each in load.batches(4)]
    assert [batch.sequence for batch in batches] == [1, 2, 3, 4]
    assert [list(batch.columns.series) for batch in batches] == [[0, 1], [2, 3], [0, 1], [2, 3]]
    assert [list(batch.columns.run_lengths) for batch in batches] == [[3, 3]] * 4
    first, then = [1_000_000, 1_001_000, 1_002_000], [1_003_000, 1_004_000, 1_005_000]
    assert [list(batch.columns.times) for batch in batches] == [first * 2, first * 2, then * 2, then * 2]
    assert load.samples_per_batch == 6


def test_columns_are_what_the_batches_hold_and_nothing_of_them_is_equal() -> None:
    shape = {"series": 4, "run_length": 5, "runs_per_batch": 2, "start_us": 1_000_000}
    sent = [StreamTelemetryRequest.FromString(each).batch.columns for each in SeriesLoad(**shape).batches(6)]
    parts = list(SeriesLoad(**shape).columns(6, first_series=10))
    for columns, part in zip(sent, parts, strict=True):
        assert part.times.tolist() == list(columns.times)
        assert part.values.tolist() == list(columns.double_values)
        assert part.series.tolist() == [10 + alias for alias in columns.series for _ in range(5)]
    runs = merge(parts)
    assert (runs.series.tolist(), runs.lengths.tolist()) == ([10, 11, 12, 13], [15] * 4)


def test_definitions_are_cut_into_messages_of_ten_thousand() -> None:
    requests = [StreamTelemetryRequest.FromString(each) for each in series_defs([("d", "m")] * 10_001)]
    assert [len(request.series_defs.defs) for request in requests] == [10_000, 1]
    last = requests[1].series_defs.defs[0]
    assert (last.alias, last.device_id, last.metric) == (10_000, "d", "m")
    assert last.kind == value_pb2.VALUE_KIND_DOUBLE


def test_a_reading_is_a_batch_of_its_own() -> None:
    batch = StreamTelemetryRequest.FromString(
        reading_request(sequence=7, device="d-1", metric="m", time_us=1_700_000_000_123_456, value=1.5)
    ).batch
    assert batch.sequence == 7
    (reading,) = batch.readings
    assert (reading.device_id, dict(reading.numbers)) == ("d-1", {"m": 1.5})
    assert reading.time.ToMicroseconds() == 1_700_000_000_123_456


def test_an_ack_covers_every_batch_up_to_its_own() -> None:
    acks = Acks(moments=[10.0, 11.0, 13.0], durable_through=[2, 3, 6])
    assert acks.last == 6
    assert [acks.through(moment) for moment in (9.9, 10.0, 12.9, 13.0)] == [0, 2, 3, 6]
    # The fourth batch was due after the ack of the third; the seventh has none.
    found = acks.latencies(1, [9.0, 9.5, 10.0, 12.0, 12.0, 12.0, 12.0])
    assert found.tolist() == pytest.approx([1.0, 0.5, 1.0, 1.0, 1.0, 1.0, math.inf])


def test_without_acks_nothing_is_durable() -> None:
    acks = Acks()
    assert (acks.last, acks.through(1.0)) == (0, 0)
    assert acks.latencies(1, [0.0]).tolist() == [math.inf]
