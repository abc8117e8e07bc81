"""Whoever applies what a watch tells sees what the twins are: from the start, over changes, and resumed."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from telemetry_store.columns import Kind
from telemetry_store.commit_numbers import Coverage
from telemetry_store.series import Point
from tests.unit.latest import Latest, columns
from tests.unit.twin_scene import IDS, METRICS, SECOND_US, SERIES, TENANT, Scene, lies_in
from twin_svc.tokens import ResumePoint
from twin_svc.twins import LOCATION, Device, MetricState, Twin
from twin_svc.watch import (
    Area,
    Bookmark,
    Change,
    Enter,
    Event,
    Gap,
    Leave,
    Selection,
    Snapshot,
    SnapshotEnd,
)


@dataclass
class Seen:
    """What a caller knows who does what the contract says."""

    twins: dict[str, tuple[Device, dict[str, MetricState]]] = field(default_factory=dict)
    told: int = 0

    def apply(self, events: Iterable[Event], *, resumed: bool = False) -> None:
        named: set[str] = set()
        for event in events:
            self.told += 1
            match event:
                case Snapshot(twins):
                    for twin in twins:
                        named.add(twin.device.id)
                        self._take(twin, anew=not resumed)
                case Enter(twins):
                    for twin in twins:
                        assert twin.device.id not in self.twins
                        self._take(twin, anew=True)
                case Change(twins):
                    for twin in twins:
                        assert twin.device.id in self.twins
                        self._take(twin, anew=False)
                case Leave(ids):
                    for id_ in ids:
                        del self.twins[id_]
                case SnapshotEnd() | Bookmark() | Gap():
                    raise AssertionError("these are told by others")
        if named:
            self.twins = {id_: twin for id_, twin in self.twins.items() if id_ in named}

    def _take(self, twin: Twin, *, anew: bool) -> None:
        known = {} if anew else self.twins.get(twin.device.id, (None, {}))[1]
        self.twins[twin.device.id] = twin.device, {**known, **twin.metrics}


SELECTIONS = [
    Selection(),
    Selection(ids=frozenset(["pump-1", "fan-1", "absent"])),
    Selection(device_type_id="fan"),
    Selection(tag="hot", metrics=frozenset(["speed"])),
    Selection(area=Area(-10, -20, 10, 20), metrics=frozenset(["state", LOCATION])),
    Selection(area=Area(-10, 170, 10, -170), device_type_id="pum"),
]
_POINTS = st.builds(
    Point,
    st.sampled_from([-11.0, -10.0, 0.0, 10.0]),
    st.sampled_from([-180.0, -21.0, 0.0, 20.0, 175.0]),
    st.none(),
)


class Watching(RuleBasedStateMachine):
    """Samples and devices change, callers look, some resume at the other process."""

    def __init__(self) -> None:
        super().__init__()
        self.scene = Scene()
        self.seen = [Seen() for _ in SELECTIONS]
        self.watches = [self.scene.watch(selection) for selection in SELECTIONS]
        for seen, watch in zip(self.seen, self.watches, strict=True):
            seen.apply(watch.begin(None, Coverage()))
        self._remember_points()

    def _remember_points(self) -> None:
        """Note where each caller could resume."""
        self.points = [ResumePoint(self.scene.coverage, watch.members) for watch in self.watches]

    @rule(
        samples=st.lists(
            st.tuples(
                st.sampled_from(IDS),
                st.sampled_from(sorted(METRICS)),
                st.integers(0, 20),
                st.integers(0, 9),
                _POINTS,
            ),
            max_size=6,
            unique_by=lambda sample: sample[:2],
        )
    )
    def commit(self, samples: Sequence[tuple[str, str, int, int, Point]]) -> None:
        values = {Kind.DOUBLE: float, Kind.STRING: str}
        self.scene.commit(
            *(
                (device, metric, time_us, point if metric == LOCATION else values[METRICS[metric]](number))
                for device, metric, time_us, number, point in samples
            )
        )

    @rule(
        device_id=st.sampled_from(IDS), tags=st.sampled_from([(), ("hot",)]), name=st.sampled_from(["a", "b"])
    )
    def change_device(self, device_id: str, tags: Sequence[str], name: str) -> None:
        self.scene.device(device_id, tags=frozenset(tags), display_name=name)

    @rule(device_id=st.sampled_from(IDS), type_id=st.sampled_from(["pum", "fan"]))
    def change_type(self, device_id: str, type_id: str) -> None:
        self.scene.device(device_id, device_type_id=type_id)

    @rule(device_id=st.sampled_from(IDS))
    def delete(self, device_id: str) -> None:
        self.scene.delete(device_id)

    @rule()
    def look(self) -> None:
        for seen, watch, selection in zip(self.seen, self.watches, SELECTIONS, strict=True):
            seen.apply(watch.look())
            assert seen.twins == self.scene.expected(selection)
            told = seen.told
            seen.apply(watch.look())
            assert seen.told == told, "nothing changed, and something was told"
        self._remember_points()

    @rule(replica=st.integers(0, 1))
    def resume(self, replica: int) -> None:
        self.watches = [self.scene.watch(selection, replica=replica) for selection in SELECTIONS]
        for seen, watch, selection, point in zip(
            self.seen, self.watches, SELECTIONS, self.points, strict=True
        ):
            events = list(watch.begin(point, Coverage()))
            named = {
                twin.device.id for event in events if isinstance(event, Snapshot) for twin in event.twins
            }
            seen.apply(events, resumed=True)
            seen.twins = {id_: twin for id_, twin in seen.twins.items() if id_ in named}
            assert seen.twins == self.scene.expected(selection)

    @invariant()
    def nothing_is_ahead(self) -> None:
        assert all(len(seen.twins) <= len(IDS) for seen in self.seen)


TestWatching = Watching.TestCase


SCENE_NOW = 1_000 * SECOND_US


def test_who_stops_reporting_goes_offline_and_comes_back() -> None:
    scene = Scene()
    scene.device("pump-1", heartbeat_us=10 * SECOND_US)
    scene.device("pump-2")
    scene.commit(("pump-1", "speed", SCENE_NOW - SECOND_US, 1.0), ("pump-2", "speed", 1, 1.0))
    watch = scene.watch()
    (snapshot,) = watch.begin(None, Coverage())
    assert isinstance(snapshot, Snapshot)
    assert [twin.is_online(scene.clock.now_us()) for twin in snapshot.twins] == [True, None]

    scene.clock.advance(9)
    assert list(watch.look()) == []
    scene.clock.advance(0.000_001)
    (change,) = watch.look()
    assert isinstance(change, Change)
    (twin,) = change.twins
    assert (twin.device.id, twin.metrics, twin.is_online(scene.clock.now_us())) == ("pump-1", {}, False)
    assert list(watch.look()) == []

    scene.commit(("pump-1", "speed", scene.clock.now_us(), 2.0))
    (change,) = watch.look()
    assert isinstance(change, Change)
    assert [twin.is_online(scene.clock.now_us()) for twin in change.twins] == [True]


def test_a_resumed_watch_is_told_only_what_its_token_does_not_cover() -> None:
    scene = Scene()
    scene.device("pump-1")
    scene.device("pump-2")
    scene.commit(("pump-1", "speed", 1, 1.0), ("pump-2", "speed", 1, 1.0))
    first = scene.watch()
    list(first.begin(None, Coverage()))
    point = ResumePoint(scene.coverage, first.members)
    scene.commit(("pump-1", "state", 2, "on"))

    events = list(scene.watch(replica=1).begin(point, Coverage()))

    assert [
        (twin.device.id, list(twin.metrics))
        for event in events
        if isinstance(event, Snapshot)
        for twin in event.twins
    ] == [("pump-1", ["state"]), ("pump-2", [])]


@pytest.mark.parametrize(("covered", "told"), [(Coverage(0, {7: 5}), []), (Coverage(0, {7: 4}), ["speed"])])
def test_values_of_the_checkpoint_are_covered_by_tokens_beyond_it(covered: Coverage, told: list[str]) -> None:
    scene = Scene()
    scene.device("pump-1")
    (latest,) = columns([Latest(TENANT, SERIES["pump-1", "speed"].series_id, 1, 5, 1.0)])
    scene.fleets[0].apply(latest)

    first = scene.watch()
    list(first.begin(None, Coverage()))
    (snapshot,) = scene.watch().begin(ResumePoint(covered, first.members), Coverage(0, {7: 5}))

    assert isinstance(snapshot, Snapshot)
    assert list(snapshot.twins[0].metrics) == told


def test_many_twins_come_in_many_events() -> None:
    scene = Scene()
    scene.devices.replace({f"d-{number:04}": Device(f"d-{number:04}", "", "", {}) for number in range(1_200)})
    watch = scene.watch()
    parts = [len(event.twins) for event in watch.begin(None, Coverage()) if isinstance(event, Snapshot)]
    assert parts == [500, 500, 200]
    scene.devices.replace({})
    left = [event for event in watch.look() if isinstance(event, Leave)]
    assert sum(len(event.ids) for event in left) == 1_200


@given(st.floats(-90, 90), st.floats(-180, 180), st.floats(-90, 90), st.floats(-180, 180), _POINTS)
def test_areas(south: float, west: float, north: float, east: float, point: Point) -> None:
    area = Area(south, west, north, east)
    positions = np.array([[point.latitude, point.longitude], [np.nan, np.nan]])
    assert area.holds(positions).tolist() == [lies_in(area, point), False]
