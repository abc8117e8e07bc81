"""The digest that decides whether a retry is the same request."""

import struct
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.conversion import to_readings
from ingest_svc.reading import digest
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.value_pb2 import Point, Value

METRICS = st.from_regex(r"[A-Za-z_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
FINITE = st.floats(allow_nan=False, allow_infinity=False)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)


@st.composite
def points(draw: st.DrawFn) -> Point:
    point = Point(
        latitude=draw(st.floats(-90, 90, allow_nan=False)),
        longitude=draw(st.floats(-180, 180, allow_nan=False)),
    )
    altitude = draw(st.none() | FINITE)
    if altitude is not None:
        point.altitude = altitude
    return point


VALUES = st.one_of(
    FINITE.map(lambda value: Value(double_value=value)),
    INT64.map(lambda value: Value(int_value=value)),
    st.booleans().map(lambda value: Value(bool_value=value)),
    TEXT.map(lambda value: Value(string_value=value)),
    points().map(lambda value: Value(point_value=value)),
)


@st.composite
def plain_readings(draw: st.DrawFn) -> dict[str, Any]:
    """What one reading says, as Python data whose equality is that of the content."""
    reading: dict[str, Any] = {
        "device": draw(st.sampled_from(["pump-1", "pump-2", "a"])),
        "time": draw(st.none() | st.integers(-(10**15), 4 * 10**15)),
        "values": draw(st.dictionaries(METRICS, VALUES, max_size=4)),
        "numbers": draw(st.dictionaries(METRICS, FINITE, max_size=4)),
        "location": draw(st.none() | points()),
    }
    if not reading["values"] and not reading["numbers"] and reading["location"] is None:
        reading["numbers"] = {"x": 1.0}
    return reading


def message(reading: dict[str, Any], *, backwards: bool = False) -> ingest_pb2.Reading:
    """Build the message, its maps filled in one order or the other."""
    built = ingest_pb2.Reading(device_id=reading["device"])
    if reading["time"] is not None:
        built.time.FromMicroseconds(reading["time"])
    order = reversed if backwards else iter
    for metric in order(list(reading["values"])):
        built.values[metric].CopyFrom(reading["values"][metric])
    for metric in order(list(reading["numbers"])):
        built.numbers[metric] = reading["numbers"][metric]
    if reading["location"] is not None:
        built.location.CopyFrom(reading["location"])
    return built


def content(reading: dict[str, Any]) -> Any:
    """Return what tells readings apart; floats by their bits, so that -0.0 is not 0.0."""

    def of_point(point: Point) -> Any:
        altitude = struct.pack("<d", point.altitude) if point.HasField("altitude") else None
        return struct.pack("<dd", point.latitude, point.longitude), altitude

    def of_value(value: Value) -> Any:
        kind = value.WhichOneof("kind")
        assert kind is not None
        inner = getattr(value, kind)
        if kind == "double_value":
            inner = struct.pack("<d", inner)
        return kind, of_point(inner) if kind == "point_value" else inner

    samples = [(metric, *of_value(value)) for metric, value in reading["values"].items()]
    samples += [
        (metric, "number", struct.pack("<d", number)) for metric, number in reading["numbers"].items()
    ]
    if reading["location"] is not None:
        # By the contract the same as a point value of metric `location`.
        samples.append(("location", "point_value", of_point(reading["location"])))
    return reading["device"], reading["time"], sorted(samples, key=repr)


def digest_of(
    readings: list[ingest_pb2.Reading], *, all_or_nothing: bool = False, backfill: str = ""
) -> bytes:
    return digest(to_readings(readings), all_or_nothing=all_or_nothing, backfill_id=backfill)


@given(st.lists(plain_readings(), min_size=1, max_size=4))
def test_order_of_maps_does_not_matter(readings: list[dict[str, Any]]) -> None:
    forward = [message(reading) for reading in readings]
    backward = [message(reading, backwards=True) for reading in readings]
    assert digest_of(forward) == digest_of(backward)
    assert len(digest_of(forward)) == 32


@given(st.lists(plain_readings(), min_size=1, max_size=4))
def test_the_wire_does_not_matter(readings: list[dict[str, Any]]) -> None:
    sent = ingest_pb2.IngestTelemetryRequest(readings=[message(reading) for reading in readings])
    received = ingest_pb2.IngestTelemetryRequest.FromString(sent.SerializeToString())
    assert digest_of(list(sent.readings)) == digest_of(list(received.readings))


@given(
    st.lists(plain_readings(), min_size=1, max_size=3),
    st.lists(plain_readings(), min_size=1, max_size=3),
)
def test_equal_exactly_for_equal_content(one: list[dict[str, Any]], other: list[dict[str, Any]]) -> None:
    same = [content(reading) for reading in one] == [content(reading) for reading in other]
    equal = digest_of([message(reading) for reading in one]) == digest_of(
        [message(reading) for reading in other]
    )
    assert equal == same


@given(plain_readings(), st.data())
def test_any_change_of_a_reading_shows(reading: dict[str, Any], data: st.DataObject) -> None:
    changed = {**reading, "values": dict(reading["values"]), "numbers": dict(reading["numbers"])}
    which = data.draw(st.sampled_from(["device", "time", "location", "value", "number", "metric"]))
    if which == "device":
        changed["device"] = reading["device"] + "0"
    elif which == "time":
        changed["time"] = (
            0 if reading["time"] is None else data.draw(st.sampled_from([None, reading["time"] + 1]))
        )
    elif which == "location":
        changed["location"] = Point(latitude=1) if reading["location"] is None else None
        changed["numbers"]["spare"] = changed["numbers"].get("spare", 0.0)
        reading["numbers"]["spare"] = changed["numbers"]["spare"]
    elif which == "value":
        metric = data.draw(st.sampled_from([*reading["values"], "new"]))
        changed["values"][metric] = data.draw(VALUES)
    elif which == "number":
        metric = data.draw(st.sampled_from([*reading["numbers"], "new"]))
        changed["numbers"][metric] = data.draw(FINITE)
    else:
        changed["numbers"]["a-metric-more"] = 0.0
    same = content(reading) == content(changed)
    assert (digest_of([message(reading)]) == digest_of([message(changed)])) == same


def test_mode_backfill_and_order_of_readings_matter() -> None:
    first = ingest_pb2.Reading(device_id="a", numbers={"x": 1.0})
    second = ingest_pb2.Reading(device_id="b", numbers={"x": 1.0})
    digests = [
        digest_of([first, second]),
        digest_of([second, first]),
        digest_of([first, second], all_or_nothing=True),
        digest_of([first, second], backfill="bf-1"),
        digest_of([first]),
    ]
    assert len(set(digests)) == len(digests)


def test_a_number_is_not_a_double_value() -> None:
    number = ingest_pb2.Reading(device_id="a", numbers={"x": 1.0})
    double = ingest_pb2.Reading(device_id="a", values={"x": Value(double_value=1.0)})
    integer = ingest_pb2.Reading(device_id="a", values={"x": Value(int_value=1)})
    truth = ingest_pb2.Reading(device_id="a", values={"x": Value(bool_value=True)})
    assert len({digest_of([reading]) for reading in (number, double, integer, truth)}) == 4


def test_the_canonical_form_stays() -> None:
    """A writer's retry may come after an upgrade, so this digest must never change."""
    reading = ingest_pb2.Reading(
        device_id="pump-1",
        values={"state": Value(string_value="läuft"), "count": Value(int_value=-(2**63))},
        numbers={"temperature": -0.0},
        location=Point(latitude=1.5, longitude=-2.25),
    )
    reading.time.FromMicroseconds(1_700_000_000_123_456)
    assert digest_of([reading]).hex() == "28e971663595a194a29c2303f2d431d19af359d70d818e3e549ed2098282bc5c"
