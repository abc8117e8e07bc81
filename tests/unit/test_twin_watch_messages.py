"""What a watch tells is what a client parses, written once for many or not."""

from collections.abc import Sequence
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from telemetry_store.commit_numbers import Coverage
from telemetry_store.series import Point
from twin_svc import tokens
from twin_svc.messages import twin_message
from twin_svc.tokens import ResumePoint
from twin_svc.twins import Device, MetricState, Twin
from twin_svc.watch import Bookmark, Change, Enter, Event, Gap, Leave, Snapshot, SnapshotEnd
from twin_svc.watch_messages import WatchMessages
from twinmesh.twin.v1 import twin_service_pb2 as contract

POINT = ResumePoint(Coverage(3, {5: 7}), 11)
TOKEN = tokens.encode(POINT)
SECOND_US = 1_000_000
SEEN_US = 1_790_000_000 * SECOND_US

_VALUES = st.one_of(
    st.sampled_from([1, 1.0, True, 0, 0.0, -0.0, False, "1", ""]),
    st.floats(allow_nan=False),
    st.integers(-(1 << 63), (1 << 63) - 1),
    st.text(),
    st.builds(Point, st.floats(-90, 90), st.floats(-180, 180), st.none() | st.floats(0, 9)),
)
_TWINS = st.builds(
    Twin,
    st.builds(
        Device, st.text(max_size=200), st.text(), st.text(), st.just({}), heartbeat_us=st.sampled_from([0, 5])
    ),
    st.dictionaries(
        st.text(), st.builds(MetricState, _VALUES, st.integers(0, 1 << 52), st.text()), max_size=3
    ),
    st.none() | st.just(Point(1.0, 2.0, None)),
    st.just(9),
    st.none() | st.just(SEEN_US),
)


def written(
    messages: WatchMessages, event: Event, now_us: int = SEEN_US
) -> list[contract.WatchTwinsResponse]:
    return [contract.WatchTwinsResponse.FromString(one) for one in messages.responses(event, now_us)]


@given(st.lists(_TWINS, max_size=4), st.lists(st.integers(SEEN_US, SEEN_US + 10), min_size=1, max_size=3))
def test_twins_are_written_as_they_are_at_each_time(twins: Sequence[Twin], moments: Sequence[int]) -> None:
    messages = WatchMessages()
    for now_us in moments:
        expected = [twin_message(twin, now_us) for twin in twins]
        for name, event in (
            ("snapshot", Snapshot(twins)),
            ("change", Change(twins)),
            ("enter", Enter(twins)),
        ):
            told = written(messages, event, now_us)
            assert [one.WhichOneof("event") for one in told] == [name] * bool(twins)
            assert [twin for one in told for twin in getattr(one, name).twins] == expected


def test_equal_twins_are_not_the_same() -> None:
    first = Twin(Device("pump-1", "", "", {}), {"speed": MetricState(1, 0, "")}, None, None, None)
    second = replace(first, metrics={"speed": MetricState(1.0, 0, "")})
    assert first == second
    (told,) = written(WatchMessages(), Change([first, second]))
    kinds = [twin.metrics["speed"].value.WhichOneof("kind") for twin in told.change.twins]
    assert kinds == ["int_value", "double_value"]


def test_a_twin_that_many_are_told_of_is_written_once(monkeypatch: pytest.MonkeyPatch) -> None:
    count = 0

    def counting(twin: Twin, now_us: int) -> contract.Twin:
        nonlocal count
        count += 1
        return twin_message(twin, now_us)

    monkeypatch.setattr("twin_svc.watch_messages.twin_message", counting)
    twins = [Twin(Device(f"pump-{number}", "", "", {}), {}, None, None, None) for number in range(3)]
    messages = WatchMessages()
    for event in (Change(twins), Change(twins[1:]), Enter(twins), Snapshot(twins)):
        written(messages, event)
    assert count == 3


def test_what_is_kept_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("twin_svc.watch_messages._TWINS_KEPT", 10)
    messages = WatchMessages()
    for number in range(100):
        (told,) = written(messages, Change([Twin(Device(f"d-{number}", "", "", {}), {}, None, None, None)]))
        assert told.change.twins[0].id == f"d-{number}"
        assert len(messages._written) <= 10


def test_much_comes_in_messages_of_a_mebibyte() -> None:
    long = MetricState("x" * 4096, 0, "")
    twins = [
        Twin(Device(f"d-{number}", "", "", {}), {"text": long}, None, None, None) for number in range(600)
    ]
    payloads = list(WatchMessages().responses(Change(twins), 0))
    assert [len(payload) <= 1024 * 1024 + 16 for payload in payloads] == [True] * 3
    told = [contract.WatchTwinsResponse.FromString(payload) for payload in payloads]
    assert [twin.id for one in told for twin in one.change.twins] == [twin.device.id for twin in twins]


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (Leave(["a", "b"]), contract.WatchTwinsResponse(leave=contract.Leave(ids=["a", "b"]))),
        (
            SnapshotEnd(POINT),
            contract.WatchTwinsResponse(snapshot_end=contract.SnapshotEnd(resume_token=TOKEN)),
        ),
        (Bookmark(POINT), contract.WatchTwinsResponse(bookmark=contract.Bookmark(resume_token=TOKEN))),
        (Gap(), contract.WatchTwinsResponse(gap=contract.Gap(reason=contract.GAP_REASON_EXPIRED))),
    ],
)
def test_other_events(event: Event, expected: contract.WatchTwinsResponse) -> None:
    assert written(WatchMessages(), event) == [expected]
