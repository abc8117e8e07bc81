"""A twin shows the latest sample by event time and order, in whatever order samples come."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.columns import Kind
from telemetry_store.series import Point, Series
from tests.unit.latest import Latest, columns
from twin_svc.fleet import Fleet
from twin_svc.twins import Device, MetricState

TENANT = "demo"
PUMP = Device("pump-1", "Pump 1", "pump", {"pressure": "bar"})
SERIES = [
    Series(1, TENANT, "pump-1", "pressure", Kind.DOUBLE, "psi"),
    Series(2, TENANT, "pump-1", "pressure", Kind.INT, "psi"),
    Series(3, TENANT, "pump-1", "speed", Kind.DOUBLE, "rpm"),
    Series(4, TENANT, "pump-1", "location", Kind.POINT, ""),
    Series(5, "other", "pump-1", "pressure", Kind.DOUBLE, ""),
]


def fleet_of(*samples: Latest) -> Fleet:
    """Return a fleet that was told of one sample after the other."""
    fleet = Fleet()
    fleet.learn(SERIES)
    for sample in samples:
        apply(fleet, sample)
    return fleet


def apply(fleet: Fleet, *samples: Latest) -> bool:
    return sum(len(fleet.apply(latest)) for latest in columns(samples)) > 0


def sample(series_id: int, time_us: int, order_no: int, value: float | None = None) -> Latest:
    """Return a sample of a series; a series has one per time and commit, and its value follows from them."""
    if value is None:
        value = hash((series_id, time_us, order_no)) % 1000
    series = SERIES[series_id - 1]
    return Latest(
        series.tenant, series_id, time_us, order_no, float(value) if series.kind is Kind.DOUBLE else value
    )


@given(
    st.lists(st.builds(sample, st.integers(1, 3), st.integers(0, 4), st.integers(1, 4)), max_size=30),
    st.integers(1, 10),
    st.randoms(use_true_random=False),
)
def test_order_repetition_and_grouping_make_no_difference(
    samples: list[Latest], group: int, shuffle: random.Random
) -> None:
    again = samples + samples[: len(samples) // 2]
    shuffle.shuffle(again)
    grouped = fleet_of()
    for start in range(0, len(again), group):
        apply(grouped, *again[start : start + group])

    twin = grouped.twin(TENANT, PUMP)

    assert twin == fleet_of(*samples).twin(TENANT, PUMP)
    for metric in ("pressure", "speed"):
        ranked = [one for one in samples if SERIES[one.series_id - 1].metric == metric]
        assert (metric in twin.metrics) == bool(ranked)
        if ranked:
            latest = max(ranked, key=lambda one: one.rank)
            assert (twin.metrics[metric].time_us, twin.metrics[metric].value) == (
                latest.time_us,
                latest.value,
            )
    assert twin.last_seen_us == max((one.time_us for one in samples), default=None)


def test_a_late_sample_does_not_touch_the_latest() -> None:
    fleet = fleet_of(sample(1, 100, 1, 1.0))
    assert not apply(fleet, sample(1, 99, 2, 2.0))
    assert not apply(fleet, sample(1, 100, 1, 1.0))
    version = fleet.version
    assert apply(fleet, sample(1, 100, 3, 3.0))
    assert fleet.version > version
    assert fleet.twin(TENANT, PUMP).metrics["pressure"].value == 3.0


def test_of_a_metric_whose_kind_was_changed_the_later_sample_counts() -> None:
    twin = fleet_of(sample(2, 200, 2, 7), sample(1, 100, 3, 1.5)).twin(TENANT, PUMP)
    assert twin.metrics["pressure"].value == 7


def test_a_device_without_samples_has_an_empty_twin() -> None:
    twin = Fleet().twin(TENANT, PUMP)
    assert (twin.device, twin.metrics, twin.location, twin.last_seen_us) == (PUMP, {}, None, None)


def test_a_twin_tells_units_position_and_when_the_device_was_last_seen() -> None:
    position = Latest(TENANT, 4, 300, 1, Point(59.9, 10.7, None))
    twin = fleet_of(sample(1, 400, 1), sample(3, 100, 1), position).twin(TENANT, PUMP)
    # The type says bar; speed is not in the type any more.
    assert {metric: state.unit for metric, state in twin.metrics.items()} == {
        "pressure": "bar",
        "speed": "rpm",
        "location": "",
    }
    assert (twin.location, twin.location_time_us, twin.last_seen_us) == (Point(59.9, 10.7, None), 300, 400)


def test_tenants_are_apart() -> None:
    fleet = fleet_of(sample(5, 1, 1, 5.0))
    assert fleet.twin(TENANT, PUMP).metrics == {}
    assert fleet.twin("other", PUMP).metrics["pressure"].value == 5.0


def test_series_are_told_before_their_samples() -> None:
    fleet = Fleet()
    ((first, other),) = [columns([sample(1, 1, 1), sample(5, 1, 1)])]
    assert (fleet.unknown(first), fleet.unknown(other)) == ({(TENANT, 1)}, {("other", 5)})
    with pytest.raises(KeyError):
        fleet.apply(first)
    fleet.learn(SERIES)
    assert fleet.unknown(first) == set()


def test_a_fleet_grows() -> None:
    fleet = Fleet()
    count = 5_000
    fleet.learn(
        Series(3 * number, TENANT, f"device-{number}", metric, Kind.DOUBLE, "")
        for number, metric in ((number, "pressure") for number in range(1, count))
    )
    apply(fleet, *(Latest(TENANT, 3 * number, number, 1, float(number)) for number in range(1, count)))
    for number in (1, 1023, 1024, count - 1):
        twin = fleet.twin(TENANT, Device(f"device-{number}", "", "", {}))
        assert (twin.last_seen_us, twin.metrics["pressure"].value) == (number, float(number))


@given(
    st.lists(
        st.lists(st.builds(sample, st.integers(1, 4), st.integers(0, 9), st.just(1)), max_size=5), max_size=8
    )
)
def test_what_changed_is_what_a_watch_has_not_told(commits: list[list[Latest]]) -> None:
    fleet = fleet_of()
    device = [fleet.device_slot(TENANT, PUMP.id)]
    slots = fleet.metric_slots(device, ())
    told: dict[str, MetricState] = {}
    version = fleet.version
    for commit in commits:
        commit = [one for one in commit if one.kind is SERIES[one.series_id - 1].kind]  # noqa: PLW2901
        apply(fleet, *commit)
        changed = slots[fleet.changed(slots, after=version)]
        version = fleet.version
        news = fleet.twin(TENANT, PUMP, slots=changed.tolist()).metrics
        assert all(told.get(metric) != state for metric, state in news.items())
        told.update(news)
        assert told == fleet.twin(TENANT, PUMP).metrics


@given(
    st.lists(
        st.lists(st.builds(sample, st.integers(1, 4), st.integers(0, 4), st.integers(1, 4)), max_size=3),
        max_size=6,
    ),
    st.sets(st.sampled_from(["pressure", "speed", "location"])),
)
def test_a_shared_twin_is_the_present_one(commits: list[list[Latest]], metrics: set[str]) -> None:
    fleet = fleet_of()
    slots = tuple(fleet.metric_slots([fleet.device_slot(TENANT, "pump-1")], metrics).tolist())
    for commit in commits:
        apply(fleet, *commit)
        for device in (PUMP, replace(PUMP, display_name="Renamed")):
            shared = fleet.shared_twin(TENANT, device, slots=slots)
            assert shared == fleet.twin(TENANT, device, slots=slots)
            assert fleet.shared_twin(TENANT, device, slots=slots) is shared


def test_of_shared_twins_a_bounded_number_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twin_svc.fleet._TWINS_KEPT", 1)
    fleet = fleet_of(sample(1, 1, 1, 1.0), sample(3, 1, 1, 3.0))
    slots = fleet.metric_slots([fleet.device_slot(TENANT, "pump-1")], [])
    for slot in slots.tolist():
        fleet.shared_twin(TENANT, PUMP, slots=(slot,))
    assert len(fleet._shown) == 1
