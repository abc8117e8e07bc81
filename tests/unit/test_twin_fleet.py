"""A twin shows the latest sample by event time and order, in whatever order samples come."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.columns import Kind
from telemetry_store.series import LatestSample, Point, Series
from twin_svc.twins import Device, Fleet

TENANT = "demo"
PUMP = Device("pump-1", "Pump 1", "pump", {"pressure": "bar"})
SERIES = [
    Series(1, TENANT, "pump-1", "pressure", Kind.DOUBLE, "psi"),
    Series(2, TENANT, "pump-1", "pressure", Kind.INT, "psi"),
    Series(3, TENANT, "pump-1", "speed", Kind.DOUBLE, "rpm"),
    Series(4, TENANT, "pump-1", "location", Kind.POINT, ""),
    Series(5, "other", "pump-1", "pressure", Kind.DOUBLE, ""),
]


def fleet_of(*samples: LatestSample) -> Fleet:
    fleet = Fleet()
    fleet.learn(SERIES)
    for sample in samples:
        fleet.apply(sample)
    return fleet


def sample(series_id: int, time_us: int, order_no: int, value: float = 0.0) -> LatestSample:
    return LatestSample(SERIES[series_id - 1].tenant, series_id, time_us, order_no, value)


@given(
    st.lists(st.builds(sample, st.integers(1, 3), st.integers(0, 4), st.integers(1, 4)), max_size=30),
    st.randoms(use_true_random=False),
)
def test_order_and_repetition_make_no_difference(samples: list[LatestSample], shuffle: random.Random) -> None:
    # A series has one sample per time and commit; its value follows from them here.
    samples = [
        LatestSample(one.tenant, one.series_id, one.time_us, one.order_no, float(hash(one.rank) % 1000))
        for one in samples
    ]
    again = samples + samples[: len(samples) // 2]
    shuffle.shuffle(again)

    twin = fleet_of(*again).twin(TENANT, PUMP)

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


def test_a_late_sample_does_not_touch_the_latest() -> None:
    fleet = fleet_of(sample(1, 100, 1, 1.0))
    assert not fleet.apply(sample(1, 99, 2, 2.0))
    assert not fleet.apply(sample(1, 100, 1, 1.0))
    assert fleet.apply(sample(1, 100, 3, 3.0))
    assert fleet.twin(TENANT, PUMP).metrics["pressure"].value == 3.0


def test_of_a_metric_whose_kind_was_changed_the_later_sample_counts() -> None:
    twin = fleet_of(sample(2, 200, 2, 7), sample(1, 100, 3, 1.5)).twin(TENANT, PUMP)
    assert twin.metrics["pressure"].value == 7


def test_a_device_without_samples_has_an_empty_twin() -> None:
    twin = Fleet().twin(TENANT, PUMP)
    assert (twin.device, twin.metrics, twin.location, twin.last_seen_us) == (PUMP, {}, None, None)


def test_a_twin_tells_units_position_and_when_the_device_was_last_seen() -> None:
    position = LatestSample(TENANT, 4, 300, 1, Point(59.9, 10.7, None))
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
    assert fleet.unknown([sample(1, 1, 1), sample(5, 1, 1)]) == {(TENANT, 1), ("other", 5)}
    with pytest.raises(KeyError):
        fleet.apply(sample(1, 1, 1))
    fleet.learn(SERIES)
    assert fleet.unknown([sample(1, 1, 1)]) == set()
