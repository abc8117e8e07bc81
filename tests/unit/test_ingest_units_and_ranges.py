"""Values in other units and outside of ranges: readings and columns come to the same."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc import assessment, columns
from ingest_svc.columns import SentColumns
from ingest_svc.profile import DeviceProfile, MetricProfile
from ingest_svc.reading import Reading
from ingest_svc.series_table import SeriesDefinition, SeriesTable
from ingest_svc.window import TimeWindow
from meshkit.units import conversion
from telemetry_store.columns import Kind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

NOW = 1_700_000_000_000_000
WINDOW = TimeWindow("the live window", NOW - 1_000, NOW + 1_000)
METRICS = {
    "plain": MetricProfile(Kind.DOUBLE, "bar"),
    "converted": MetricProfile(Kind.DOUBLE, "°C", conversion=conversion("°F", "°C")),
    "bounded": MetricProfile(Kind.DOUBLE, "", bounds=(-1.0, 1.0)),
    "both": MetricProfile(Kind.DOUBLE, "mm", conversion=conversion("m", "mm"), bounds=(-math.inf, 500.0)),
    "count": MetricProfile(Kind.INT, "", bounds=(0, 100)),
}
PROFILES = {"pump-1": DeviceProfile("pump", True, METRICS, aliases={"t1": "converted", "n": "count"})}
NAMES = [*METRICS, "t1", "n"]
EXPECTED = {
    ("plain", 1e308): 1e308,
    ("converted", 212.0): pytest.approx(100.0),
    ("t1", 32.0): pytest.approx(0.0, abs=1e-12),
    ("bounded", 1.0): 1.0,
    ("bounded", 1.0000001): "VALUE_OUT_OF_RANGE",
    ("both", 0.5): 500.0,
    ("both", 0.6): "VALUE_OUT_OF_RANGE",
    ("both", 1e308): "VALUE_INVALID",
    ("count", 100): 100,
    ("n", -1): "VALUE_OUT_OF_RANGE",
}
NUMBERS = st.floats(allow_nan=False, allow_infinity=False) | st.sampled_from([-1.0, 0.5, 1.0, 1e308])
SAMPLES = st.lists(
    st.sampled_from(NAMES).flatmap(
        lambda name: st.tuples(st.just(name), st.integers(-5, 200) if name in ("count", "n") else NUMBERS)
    ),
    min_size=1,
    max_size=20,
)


def table() -> SeriesTable:
    made = SeriesTable()
    made.define(
        [(alias, SeriesDefinition("pump-1", name, kind_of(name), "")) for alias, name in enumerate(NAMES)]
    )
    aliases = made.unresolved(len(NAMES))
    good = made.judge(aliases, PROFILES)
    names = {key.metric: number for number, (key, _) in enumerate(good.values())}
    made.settle(aliases, list(good), np.array([names[key.metric] for key, _ in good.values()], np.int32))
    return made


def kind_of(name: str) -> Kind:
    metric = PROFILES["pump-1"].metric(name)
    assert metric is not None
    return metric.kind


TABLE = table()


def by_columns(samples: Sequence[tuple[str, float]]) -> list[float | str]:
    """Return the value stored of each sample, or why none is."""
    sent = SentColumns(
        aliases=np.array([NAMES.index(name) for name, _ in samples], np.uint32),
        run_lengths=np.ones(len(samples), np.int64),
        times=np.full(len(samples), NOW, np.int64),
        values={
            kind: np.array([value for name, value in samples if kind_of(name) is kind], dtype)
            for kind, dtype in ((Kind.DOUBLE, np.float64), (Kind.INT, np.int64))
        },
    )
    columns.check(sent, TABLE)
    assessed = columns.assess(sent, TABLE, window=WINDOW, all_or_nothing=False)
    stored = {found.kind: iter(found.values.tolist()) for found in assessed.samples}
    refused = {refusal.reading_index: refusal.reason for refusal in assessed.refusals}
    return [
        name_of(refused[place]) if place in refused else next(stored[kind_of(name)])
        for place, (name, _) in enumerate(samples)
    ]


def by_readings(samples: Sequence[tuple[str, float]]) -> list[float | str]:
    """Return the same of readings of one sample each."""
    assessed = assessment.assess(
        [Reading("pump-1", NOW, [(name, kind_of(name).value, value)]) for name, value in samples],
        profiles=PROFILES,
        window=WINDOW,
        received_us=NOW,
        all_or_nothing=False,
    )
    result: list[float | str] = [""] * len(samples)
    for refusal in assessed.refusals:
        result[refusal.reading_index] = name_of(refusal.reason)
    for found in assessed.samples.values():
        for place, value in zip(found.readings, found.values, strict=True):
            assert isinstance(value, int | float)
            result[place] = value
    return result


def name_of(reason: int) -> str:
    return ErrorReason.Name(ErrorReason.ValueType(reason)).removeprefix("ERROR_REASON_")


def test_what_is_stored_and_what_is_refused() -> None:
    samples = list(EXPECTED)
    assert by_readings(samples) == list(EXPECTED.values())
    assert by_columns(samples) == list(EXPECTED.values())


@given(SAMPLES)
def test_readings_and_columns_come_to_the_same(samples: list[tuple[str, float]]) -> None:
    assert by_columns(samples) == by_readings(samples)


def test_a_metric_is_not_stated_twice_under_two_names() -> None:
    twice = Reading("pump-1", NOW, [("converted", Kind.DOUBLE.value, 1.0), ("t1", Kind.DOUBLE.value, 2.0)])
    assessed = assessment.assess(
        [twice], profiles=PROFILES, window=WINDOW, received_us=NOW, all_or_nothing=False
    )
    assert [(refusal.metric, name_of(refusal.reason)) for refusal in assessed.refusals] == [
        ("converted", "METRIC_REPEATED"),
        ("t1", "METRIC_REPEATED"),
    ]


def test_what_is_refused_tells_the_range() -> None:
    sent = SentColumns(
        aliases=np.array([NAMES.index("bounded")], np.uint32),
        run_lengths=np.array([3]),
        times=np.array([NOW, NOW + 1, NOW + 2]),
        values={Kind.DOUBLE: np.array([0.0, 5.0, 6.0])},
    )
    (refusal,) = columns.assess(sent, TABLE, window=WINDOW, all_or_nothing=False).refusals
    assert (refusal.reading_index, refusal.sample_count) == (1, 2)
    assert refusal.message == "metric 'bounded' is from -1 to 1; its type refuses other values, such as 5"
