"""Which samples are stored, which are refused, and why."""

from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.assessment import MAX_REFUSALS, Assessment, assess, refuse_rest
from ingest_svc.outcome import VALUE_REFUSED
from ingest_svc.profile import LOCATION, LOCATION_PROFILE, DeviceProfile, MetricProfile
from ingest_svc.reading import NUMBER, Reading, SentSample
from ingest_svc.window import TimeWindow
from telemetry_store.columns import Kind
from telemetry_store.series import SeriesKey
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

NOW = 1_700_000_000_000_000
WINDOW = TimeWindow("the live window", NOW - 1_000, NOW + 1_000)
METRICS = {
    "double": MetricProfile(Kind.DOUBLE, "°C"),
    "int": MetricProfile(Kind.INT, ""),
    "bool": MetricProfile(Kind.BOOL, ""),
    "string": MetricProfile(Kind.STRING, ""),
    "point": MetricProfile(Kind.POINT, ""),
    LOCATION: LOCATION_PROFILE,
}
PROFILES = {
    "pump-1": DeviceProfile(device_type_id="pump", enabled=True, metrics=METRICS),
    "pump-2": DeviceProfile(device_type_id="pump", enabled=True, metrics=METRICS),
    "off": DeviceProfile(device_type_id="pump", enabled=False, metrics=METRICS),
}
VALUES: dict[int, Any] = {
    NUMBER: 3.0,
    Kind.DOUBLE: 1.5,
    Kind.INT: -7,
    Kind.BOOL: False,
    Kind.STRING: "",
    Kind.POINT: (1.0, 2.0, None),
}


def reading(device: str = "pump-1", *samples: SentSample, time_us: int | None = NOW) -> Reading:
    return Reading(device, time_us, sorted(samples, key=lambda sample: sample[0]))


def assessed(*readings: Reading, all_or_nothing: bool = False) -> Assessment:
    return assess(
        readings, profiles=PROFILES, window=WINDOW, received_us=NOW + 5, all_or_nothing=all_or_nothing
    )


def reasons(assessment: Assessment) -> list[tuple[int, str, str]]:
    return [
        (
            refusal.reading_index,
            refusal.metric,
            ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_"),
        )
        for refusal in assessment.refusals
    ]


def stored(assessment: Assessment) -> dict[SeriesKey, list[tuple[int, Any]]]:
    """Read the columns back, as samples by series in their order."""
    samples: dict[SeriesKey, list[tuple[int, Any]]] = defaultdict(list)
    ids = np.arange(100, 100 + len(assessment.series), dtype=np.int32)
    for columns in assessment.columns(ids):
        values = columns.tolist()
        for series, time_us, value in zip(
            columns.series.tolist(), columns.times.tolist(), values, strict=True
        ):
            key = assessment.series[series - 100]
            assert key.kind == columns.kind
            samples[key].append((time_us, value))
    return dict(samples)


@pytest.mark.parametrize("kind", list(Kind))
def test_a_value_of_the_metrics_kind_is_stored(kind: Kind) -> None:
    metric = kind.name.lower()
    assessment = assessed(reading("pump-1", (metric, kind, VALUES[kind])))
    assert (assessment.stored_samples, assessment.refused_samples) == (1, 0)
    assert assessment.series == [SeriesKey("pump-1", metric, kind, METRICS[metric].unit)]


@pytest.mark.parametrize("form", [form for form in VALUES if form != NUMBER])
@pytest.mark.parametrize("kind", list(Kind))
def test_a_value_of_another_kind_is_refused(kind: Kind, form: int) -> None:
    assessment = assessed(reading("pump-1", (kind.name.lower(), form, VALUES[form])))
    assert reasons(assessment) == ([] if form == kind else [(0, kind.name.lower(), "KIND_MISMATCH")])


@pytest.mark.parametrize(
    ("metric", "number", "expected"),
    [
        ("double", 21.5, 21.5),
        ("double", 5e-324, 5e-324),
        ("int", 3.0, 3),
        ("int", -0.0, 0),
        ("int", float(2**53 - 1), 2**53 - 1),
        ("int", -float(2**53 - 1), -(2**53 - 1)),
        # 2^53 may have been typed as 2^53 + 1; nobody can tell any more.
        ("int", float(2**53), None),
        ("int", -float(2**53), None),
        ("int", 1e300, None),
        ("int", 0.5, None),
        ("bool", 1.0, None),
        ("string", 1.0, None),
        ("point", 1.0, None),
        (LOCATION, 1.0, None),
    ],
)
def test_a_bare_number_takes_the_metrics_kind(
    metric: str, number: float, expected: float | int | None
) -> None:
    assessment = assessed(reading("pump-1", (metric, NUMBER, number)))
    if expected is None:
        assert reasons(assessment) == [(0, metric, "KIND_MISMATCH")]
    else:
        ((_, value),) = next(iter(stored(assessment).values()))
        assert (value, type(value)) == (expected, type(expected))


def test_minus_zero_stays_minus_zero() -> None:
    (column,) = assessed(reading("pump-1", ("double", NUMBER, -0.0))).columns(np.array([1], np.int32))
    assert np.signbit(column.values[0])


def test_a_point_without_altitude_has_nan() -> None:
    known = reading(
        "pump-1", ("point", Kind.POINT, (1.0, 2.0, 3.0)), ("location", Kind.POINT, (4.0, 5.0, None))
    )
    (column,) = assessed(known).columns(np.array([1, 2], np.int32))
    assert column.values.shape == (2, 3)
    np.testing.assert_array_equal(column.values, [[4.0, 5.0, np.nan], [1.0, 2.0, 3.0]])


def test_strings_stay_strings() -> None:
    (column,) = assessed(
        reading("pump-1", ("string", Kind.STRING, "läuft 🚰")), reading("pump-2", ("string", Kind.STRING, ""))
    ).columns(np.array([1, 2], np.int32))
    assert column.tolist() == ["läuft 🚰", ""]


@pytest.mark.parametrize(
    ("refused", "reason"),
    [
        (reading("nobody", ("double", NUMBER, 1.0), ("int", NUMBER, 1.0)), "DEVICE_UNKNOWN"),
        (reading("off", ("double", NUMBER, 1.0), ("int", NUMBER, 1.0)), "DEVICE_DISABLED"),
        (
            reading("pump-1", ("double", NUMBER, 1.0), ("int", NUMBER, 1.0), time_us=NOW - 1_001),
            "TIME_OUT_OF_WINDOW",
        ),
        (
            reading("pump-1", ("double", NUMBER, 1.0), ("int", NUMBER, 1.0), time_us=NOW + 1_000),
            "TIME_OUT_OF_WINDOW",
        ),
        (
            reading("pump-1", ("double", NUMBER, 1.0), ("int", NUMBER, 1.0), time_us=-(2**80)),
            "TIME_OUT_OF_WINDOW",
        ),
        (
            reading("pump-1", ("double", NUMBER, 1.0), ("int", NUMBER, 1.0), time_us=2**80),
            "TIME_OUT_OF_WINDOW",
        ),
    ],
)
def test_a_reading_is_refused_as_a_whole(refused: Reading, reason: str) -> None:
    assessment = assessed(refused, reading("pump-1", ("double", NUMBER, 1.0)))
    assert reasons(assessment) == [(0, "", reason)]
    assert (assessment.stored_samples, assessment.refused_samples) == (1, 2)


def test_the_windows_start_is_in_it_and_an_absent_time_is_the_servers() -> None:
    first = reading("pump-1", ("double", NUMBER, 1.0), time_us=NOW - 1_000)
    now = reading("pump-1", ("double", NUMBER, 2.0), time_us=None)
    assert list(stored(assessed(first, now)).values()) == [[(NOW - 1_000, 1.0), (NOW + 5, 2.0)]]


def test_each_statement_of_a_repeated_metric_is_refused() -> None:
    twice = reading(
        "pump-1",
        ("double", Kind.DOUBLE, 1.0),
        ("double", NUMBER, 1.0),
        ("location", Kind.POINT, (0.0, 0.0, None)),
        ("location", Kind.POINT, (0.0, 0.0, None)),
        ("unknown", Kind.DOUBLE, 1.0),
        ("int", Kind.INT, 1),
    )
    assessment = assessed(twice)
    assert reasons(assessment) == [
        (0, "double", "METRIC_REPEATED"),
        (0, "double", "METRIC_REPEATED"),
        (0, "location", "METRIC_REPEATED"),
        (0, "location", "METRIC_REPEATED"),
        (0, "unknown", "METRIC_UNKNOWN"),
    ]
    assert (assessment.stored_samples, assessment.refused_samples) == (1, 5)


def test_a_series_without_a_stored_sample_is_not_made() -> None:
    assert assessed(reading("pump-1", ("double", Kind.INT, 1), ("ghost", NUMBER, 1.0))).series == []


def test_all_or_nothing_refuses_the_good_as_well() -> None:
    readings = [
        reading("pump-1", ("double", NUMBER, 1.0), ("int", NUMBER, 1.0)),
        reading("pump-2", ("double", NUMBER, 1.0), ("ghost", NUMBER, 1.0), ("string", Kind.STRING, "")),
        reading("nobody", ("double", NUMBER, 1.0)),
    ]
    assessment = assessed(*readings, all_or_nothing=True)
    assert reasons(assessment) == [
        (0, "", "BATCH_REFUSED"),
        (1, "double", "BATCH_REFUSED"),
        (1, "ghost", "METRIC_UNKNOWN"),
        (1, "string", "BATCH_REFUSED"),
        (2, "", "DEVICE_UNKNOWN"),
    ]
    assert (assessment.stored_samples, assessment.refused_samples) == (0, 6)
    assert assessment.series == []
    assert assessed(readings[0], all_or_nothing=True).stored_samples == 2


def test_refusals_are_capped_and_counts_are_not() -> None:
    bad = reading("pump-1", ("ghost", NUMBER, 1.0), ("spook", NUMBER, 1.0))
    assessment = assessed(*[bad] * 2_000)
    assert assessment.refused_samples == 4_000
    assert len(assessment.refusals) == MAX_REFUSALS
    assert assessment.refusals[-1].reading_index == MAX_REFUSALS // 2 - 1


def test_the_culprit_is_named_however_many_it_takes_along() -> None:
    good = reading("pump-1", ("double", NUMBER, 1.0))
    readings = [*[good] * 5_000, reading("nobody", ("double", NUMBER, 1.0)), *[good] * 5_000]
    assessment = assessed(*readings, all_or_nothing=True)
    assert (assessment.stored_samples, assessment.refused_samples) == (0, 10_001)
    assert len(assessment.refusals) == MAX_REFUSALS
    assert reasons(assessment)[-1] == (5_000, "", "DEVICE_UNKNOWN")
    assert {reason for _, _, reason in reasons(assessment)[:-1]} == {"BATCH_REFUSED"}


SAMPLES = st.lists(
    st.tuples(st.sampled_from([*METRICS, "ghost"]), st.sampled_from(list(VALUES))).map(
        lambda sent: (*sent, VALUES[sent[1]])
    ),
    min_size=1,
    max_size=5,
)
READINGS = st.lists(
    st.builds(
        lambda device, time_us, samples: reading(device, *samples, time_us=time_us),
        st.sampled_from(["pump-1", "pump-2", "off", "nobody"]),
        st.sampled_from([None, NOW, NOW - 1_000, NOW + 1, NOW + 1_000, 0]),
        SAMPLES,
    ),
    min_size=1,
    max_size=8,
)


def model(readings: list[Reading]) -> tuple[dict[SeriesKey, list[tuple[int, Any]]], int]:
    """Say the rules again in the plainest words: (samples by series, number refused)."""
    kept: dict[SeriesKey, list[tuple[int, Any]]] = defaultdict(list)
    refused = 0
    for device, time_us, samples in readings:
        event_us = NOW + 5 if time_us is None else time_us
        for metric, form, value in samples:
            stated = [sent[0] for sent in samples].count(metric)
            allowed = device in {"pump-1", "pump-2"} and NOW - 1_000 <= event_us < NOW + 1_000
            kind = METRICS[metric].kind if metric in METRICS else None
            as_number = form == NUMBER and kind in {Kind.DOUBLE, Kind.INT}
            if allowed and stated == 1 and kind is not None and (form == kind or as_number):
                key = SeriesKey(device, metric, kind, METRICS[metric].unit)
                kept[key].append((event_us, 3 if as_number and kind == Kind.INT else value))
            else:
                refused += 1
    return dict(kept), refused


@given(READINGS)
def test_assessment_equals_the_plain_model(readings: list[Reading]) -> None:
    assessment = assessed(*readings)
    kept, refused = model(readings)
    points = {
        key: [(time, [1.0, 2.0]) for time, _ in rows] for key, rows in kept.items() if key.kind == Kind.POINT
    }
    got = {
        key: [(time, value[:2]) if key.kind == Kind.POINT else (time, value) for time, value in rows]
        for key, rows in stored(assessment).items()
    }
    assert got == {**kept, **points}
    assert assessment.refused_samples == refused
    assert assessment.stored_samples == sum(map(len, kept.values()))


@given(READINGS)
def test_all_or_nothing_is_all_or_nothing(readings: list[Reading]) -> None:
    partial, whole = assessed(*readings), assessed(*readings, all_or_nothing=True)
    if partial.refused_samples == 0:
        assert stored(whole) == stored(partial) or "nan" in repr(stored(whole))
        return
    assert whole.stored_samples == 0
    assert whole.columns(np.array([], np.int32)) == []
    assert whole.refused_samples == partial.refused_samples + partial.stored_samples
    assert set(partial.refusals) <= set(whole.refusals)
    assert {refusal.reading_index for refusal in whole.refusals} == set(range(len(readings)))


@given(READINGS)
def test_refusing_the_rest_refuses_each_sample_once(readings: list[Reading]) -> None:
    everything = refuse_rest(readings, assessed(*readings).refusals, VALUE_REFUSED)
    told = sum(
        1 if refusal.metric else len(readings[refusal.reading_index].samples) for refusal in everything
    )
    assert told == sum(len(reading.samples) for reading in readings)
    places = [(refusal.reading_index, refusal.metric) for refusal in everything]
    assert places == sorted(places)
