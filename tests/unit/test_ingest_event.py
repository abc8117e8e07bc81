"""Which events are stored, which refused, and what is told of a batch that has some."""

import json
import math
import struct
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.event import MAX_EVENTS, SentEvent, assess, digest, digest_beside, join
from ingest_svc.event_messages import to_events, to_stream_events
from ingest_svc.outcome import EventRefusal, Outcome
from ingest_svc.profile import DeviceProfile
from ingest_svc.window import TimeWindow
from telemetry_store.columns import Kind
from telemetry_store.requests import Event
from twinmesh.ingest.v1 import event_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh.type.v1.value_pb2 import Value

NOW = 1_700_000_000_000_000
WINDOW = TimeWindow("the live window", NOW - 1_000, NOW + 1_000)
PROFILES = {
    "pump-1": DeviceProfile("pump", True, {}, asset_id="line-1"),
    "pump-2": DeviceProfile("pump", True, {}),
    "off": DeviceProfile("pump", False, {}),
}
GOOD = SentEvent("pump-1", "", "door.opened", 200, NOW, "", ())


def reason(refusal: EventRefusal) -> str:
    return ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_")


def assessed(*events: SentEvent) -> tuple[list[Event], list[tuple[int, str]]]:
    found = assess(events, profiles=PROFILES, assets={"hall"}, window=WINDOW, received_us=NOW + 7)
    return found.events, [(refusal.event_index, reason(refusal)) for refusal in found.refusals]


def test_events_are_those_of_the_asset_that_their_device_is_on() -> None:
    stored, refused = assessed(
        GOOD,
        GOOD._replace(device_id="pump-2", time_us=None, message="open"),
        GOOD._replace(device_id="", asset_id="hall", severity=600),
    )
    assert refused == []
    assert [(event.device_id, event.asset_id, event.time_us) for event in stored] == [
        ("pump-1", "line-1", NOW),
        ("pump-2", None, NOW + 7),
        (None, "hall", NOW),
    ]
    assert {event.received_us for event in stored} == {NOW + 7}
    assert [(event.type, event.severity, event.message) for event in stored] == [
        ("door.opened", 200, ""),
        ("door.opened", 200, "open"),
        ("door.opened", 600, ""),
    ]


def test_what_cannot_be_stored_is_refused_by_name() -> None:
    stored, refused = assessed(
        GOOD._replace(device_id="pump-9"),
        GOOD._replace(device_id="off"),
        GOOD._replace(device_id="", asset_id="line-1"),
        GOOD._replace(time_us=WINDOW.start_us - 1),
        GOOD._replace(time_us=WINDOW.end_us),
        GOOD._replace(time_us=WINDOW.start_us),
    )
    assert [event.time_us for event in stored] == [WINDOW.start_us]
    assert refused == [
        (0, "DEVICE_UNKNOWN"),
        (1, "DEVICE_DISABLED"),
        (2, "ASSET_UNKNOWN"),
        (3, "TIME_OUT_OF_WINDOW"),
        (4, "TIME_OUT_OF_WINDOW"),
    ]


VALUES: st.SearchStrategy[tuple[int, Any]] = st.one_of(
    st.tuples(st.just(Kind.DOUBLE.value), st.floats(allow_nan=False, allow_infinity=False)),
    st.tuples(st.just(Kind.INT.value), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just(Kind.BOOL.value), st.booleans()),
    st.tuples(st.just(Kind.STRING.value), st.text(max_size=5)),
)


@given(st.dictionaries(st.text(st.characters(codec="ascii"), min_size=1, max_size=3), VALUES, max_size=5))
def test_attributes_show_their_kinds(attributes: dict[str, tuple[int, Any]]) -> None:
    sent = [(name, form, value) for name, (form, value) in sorted(attributes.items())]
    (event,), _ = assessed(GOOD._replace(attributes=sent))

    def no_exponent(text: str) -> float:
        # As numeric, a number without digits behind the point would be an int.
        assert "e" not in text.lower()
        assert "." in text
        return float(text)

    found = json.loads(event.attributes, parse_float=no_exponent)
    assert {name: (type(value), bits(value)) for name, value in found.items()} == {
        name: (type(value), bits(value)) for name, (_, value) in attributes.items()
    }


def bits(value: Any) -> Any:
    return struct.pack("<d", value) if isinstance(value, float) else value


def test_points_are_objects() -> None:
    sent = [("a", Kind.POINT.value, (1.5, -2.0, None)), ("b", Kind.POINT.value, (1.0, 2.0, 3.0))]
    (event,), _ = assessed(GOOD._replace(attributes=sent))
    assert json.loads(event.attributes) == {
        "a": {"latitude": 1.5, "longitude": -2.0},
        "b": {"latitude": 1.0, "longitude": 2.0, "altitude": 3.0},
    }


def told(outcome: Outcome) -> tuple[int, int, int, int, list[tuple[int, str]], bool]:
    return (
        outcome.stored_samples,
        outcome.refused_samples,
        outcome.stored_events,
        outcome.refused_events,
        [(refusal.event_index, reason(refusal)) for refusal in outcome.event_refusals],
        bool(outcome.reason),
    )


BAD = GOOD._replace(device_id="pump-9")


@pytest.mark.parametrize(
    ("events", "samples", "all_or_nothing", "expected"),
    [
        ([GOOD, BAD, GOOD], (5, 1), False, (5, 1, 2, 1, [(1, "DEVICE_UNKNOWN")], False)),
        ([GOOD, GOOD], (5, 0), True, (5, 0, 2, 0, [], False)),
        # A bad event refuses the samples, which are told by the batch's own reason …
        (
            [GOOD, GOOD, BAD],
            (5, 0),
            True,
            (0, 5, 0, 3, [(0, "BATCH_REFUSED"), (2, "DEVICE_UNKNOWN")], True),
        ),
        # … and bad samples, all refused by name already, the events.
        ([GOOD, GOOD], (0, 5), True, (0, 5, 0, 2, [(0, "BATCH_REFUSED"), (1, "BATCH_REFUSED")], False)),
        ([BAD], (0, 0), True, (0, 0, 0, 1, [(0, "DEVICE_UNKNOWN")], False)),
    ],
)
def test_what_is_told_of_a_batch(
    events: list[SentEvent], samples: tuple[int, int], all_or_nothing: bool, expected: Any
) -> None:
    stored, refused = samples
    outcome = join(
        Outcome(stored_samples=stored, refused_samples=refused),
        assess(events, profiles=PROFILES, assets=(), window=WINDOW, received_us=NOW),
        len(events),
        all_or_nothing=all_or_nothing,
        most_refusals=2,
    )
    assert told(outcome) == expected


def test_the_digest_is_that_of_the_content() -> None:
    others = [
        digest([GOOD], all_or_nothing=True),
        digest([GOOD], all_or_nothing=False, backfill_id="b"),
        digest([GOOD, GOOD], all_or_nothing=False),
        *(
            digest([GOOD._replace(**change)], all_or_nothing=False)
            for change in (
                {"device_id": "", "asset_id": "pump-1"},
                {"type": "door"},
                {"severity": 300},
                {"time_us": None},
                {"message": "x"},
                {"attributes": [("x", Kind.INT.value, 1)]},
                {"attributes": [("x", Kind.DOUBLE.value, 1.0)]},
                {"attributes": [("x", Kind.BOOL.value, True)]},
            )
        ),
    ]
    same = digest([GOOD], all_or_nothing=False)
    assert same == digest([GOOD._replace()], all_or_nothing=False)
    assert len({same, *others}) == len(others) + 1
    assert len({digest_beside(same, others[0]), digest_beside(others[0], same), same}) == 3


def test_events_of_a_stream_are_judged_one_by_one() -> None:
    good = event_pb2.Event(device_id="pump-1", type="door", time=Timestamp(seconds=NOW // 1_000_000))
    bad = [
        event_pb2.Event(device_id="pump-1", type="Door"),
        event_pb2.Event(type="door"),
        event_pb2.Event(device_id="pump-1", type="door", time=Timestamp(nanos=-1)),
        event_pb2.Event(device_id="pump-1", type="door", attributes={"x": Value(double_value=math.nan)}),
        event_pb2.Event(device_id="pump-1", type="door", attributes={"x": Value()}),
    ]
    sent = to_stream_events([*bad, good])
    found = assess(sent, profiles=PROFILES, assets=(), window=WINDOW, received_us=NOW)
    assert [refusal.event_index for refusal in found.refusals] == list(range(len(bad)))
    assert {reason(refusal) for refusal in found.refusals} == {"INVALID_FIELD"}
    assert [event.time_us for event in found.events] == [NOW]
    digests = {digest(to_stream_events([event]), all_or_nothing=False) for event in (*bad, good)}
    assert len(digests) == len(bad) + 1
    assert digest(to_stream_events([good]), all_or_nothing=False) == digest(
        to_events([good]), all_or_nothing=False
    )


def test_events_beyond_the_most_are_refused() -> None:
    sent = to_stream_events([event_pb2.Event(device_id="pump-2", type="door")] * (MAX_EVENTS + 1))
    found = assess(sent, profiles=PROFILES, assets=(), window=WINDOW, received_us=NOW)
    assert (len(found.events), [refusal.event_index for refusal in found.refusals]) == (
        MAX_EVENTS,
        [MAX_EVENTS],
    )


def test_the_digests_form_stays() -> None:
    assert (
        digest([GOOD], all_or_nothing=False).hex()
        == "b4d1c93246bb410ee0302feb33d070a5beeb593e846e50f4a0103339fa567e31"
    )
