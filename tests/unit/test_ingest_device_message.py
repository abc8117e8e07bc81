"""What is read of a device's JSON message, and what is refused."""

import json
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonpointer import JsonPointer

from ingest_svc.columns import MAX_STRING
from ingest_svc.device_message import MAX_OBJECTS, MalformedMessageError, read
from ingest_svc.profile import FLAT, LOCATION, LOCATION_PROFILE, DeviceProfile, MessageSchema, MetricProfile
from ingest_svc.reading import NUMBER, Reading
from meshkit.clock import from_datetime
from telemetry_store.columns import Kind

ARRIVAL = 1_800_000_000_000_000
METRICS = {
    "temperature": MetricProfile(Kind.DOUBLE, "°C"),
    "count": MetricProfile(Kind.INT, ""),
    "running": MetricProfile(Kind.BOOL, ""),
    "state": MetricProfile(Kind.STRING, ""),
    "inlet": MetricProfile(Kind.POINT, ""),
    LOCATION: LOCATION_PROFILE,
}


def profile(
    pointers: Mapping[str, str] | None = None, *, time: str = "/time", unit_us: int = 1_000_000
) -> DeviceProfile:
    found = None if pointers is None else {name: JsonPointer(text) for name, text in pointers.items()}
    return DeviceProfile("pump", True, METRICS, MessageSchema(found, JsonPointer(time), unit_us))


FLAT_PUMP = DeviceProfile("pump", True, METRICS, FLAT)


def read_bytes(payload: bytes, of: DeviceProfile = FLAT_PUMP) -> list[Reading]:
    return read("pump-1", payload, of, arrival_us=ARRIVAL)


def read_json(content: Any, of: DeviceProfile = FLAT_PUMP) -> list[Reading]:
    return read_bytes(json.dumps(content).encode(), of)


def samples(content: Any, of: DeviceProfile = FLAT_PUMP) -> dict[str, tuple[int, Any]]:
    """Read a message of one object, as (form, value) by metric."""
    (found,) = read_json(content, of)
    assert found.device_id == "pump-1"
    return {metric: (form, value) for metric, form, value in found.samples}


def time_of(time: Any, **schema: Any) -> int | None:
    return read_json({"time": time, "temperature": 1}, profile(**schema))[0].time_us


def refusal(payload: bytes | Any, of: DeviceProfile = FLAT_PUMP) -> str:
    with pytest.raises(MalformedMessageError) as caught:
        read_bytes(payload, of) if isinstance(payload, bytes) else read_json(payload, of)
    return str(caught.value)


KEYS = st.sampled_from(
    [*METRICS, "time", "env", "latitude", "longitude", "altitude", "0", "-", "a/b", "~", ""]
)
ANY_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from([2**63, -(2**63) - 1, 2**64, 10**400, "2026-01-31T12:00:00Z", "NaN", "\0", "\ud800"]),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(KEYS | st.text(max_size=3), inner, max_size=6)
    ),
    max_leaves=20,
)
POINTERS = st.text("/~01-9ab", max_size=8).filter(
    lambda text: not text or (text.startswith("/") and "~" not in text.replace("~0", "").replace("~1", ""))
)
SCHEMAS = st.builds(
    profile,
    st.none()
    | st.dictionaries(st.sampled_from(sorted(METRICS)), POINTERS.filter(bool), min_size=1, max_size=4),
    time=POINTERS.filter(bool) | st.just("/time"),
    unit_us=st.sampled_from([1, 1_000, 1_000_000]),
)


@given(content=ANY_JSON, of=SCHEMAS)
def test_of_any_json_comes_a_reading_or_one_kind_of_error(content: Any, of: DeviceProfile) -> None:
    try:
        readings = read_json(content, of)
    except MalformedMessageError:
        return
    for reading in readings:
        assert reading.samples
        assert isinstance(reading.time_us, int)
        assert list(reading.samples) == sorted(reading.samples, key=lambda sample: sample[0])


@given(payload=st.binary(max_size=64), of=SCHEMAS)
def test_of_any_bytes_comes_a_reading_or_one_kind_of_error(payload: bytes, of: DeviceProfile) -> None:
    with suppress(MalformedMessageError):
        read_bytes(payload, of)


FINITE = st.floats(allow_nan=False, allow_infinity=False)
INT64 = st.integers(-(2**63), 2**63 - 1)
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
PLACES = st.tuples(st.floats(-90, 90), st.floats(-180, 180), st.none() | FINITE)
VALUES = st.fixed_dictionaries(
    {},
    optional={
        "temperature": FINITE,
        "count": INT64,
        "running": st.booleans(),
        "state": TEXT,
        LOCATION: PLACES,
    },
).filter(bool)
FORMS = {
    "temperature": NUMBER,
    "count": Kind.INT,
    "running": Kind.BOOL,
    "state": Kind.STRING,
    LOCATION: Kind.POINT,
}


def as_json(metric: str, value: Any) -> Any:
    if metric != LOCATION:
        return value
    latitude, longitude, altitude = value
    known = {} if altitude is None else {"altitude": altitude}
    return {"latitude": latitude, "longitude": longitude, **known}


@given(values=VALUES, time_us=st.integers(0, 10**15))
def test_a_flat_object_comes_back(values: dict[str, Any], time_us: int) -> None:
    content = {metric: as_json(metric, value) for metric, value in values.items()}
    (found,) = read_json({**content, "time": time_us}, profile(unit_us=1))
    assert found.time_us == time_us
    assert [metric for metric, _, _ in found.samples] == sorted(values)
    assert {metric: (form, value) for metric, form, value in found.samples} == {
        metric: (FORMS[metric], value) for metric, value in values.items()
    }


@given(values=VALUES, names=st.lists(TEXT, min_size=6, max_size=6, unique=True), depth=st.integers(0, 3))
def test_what_pointers_name_comes_back_and_nothing_else(
    values: dict[str, Any], names: list[str], depth: int
) -> None:
    places = dict(zip(FORMS, names, strict=False))
    content: Any = {places[metric]: as_json(metric, value) for metric, value in values.items()}
    content[names[5]] = {"of": "no interest"}
    for _ in range(depth):
        content = {"a/b": [None, {"~": content}]}

    def pointer(name: str) -> str:
        return "/a~1b/1/~0" * depth + "/" + name.replace("~", "~0").replace("/", "~1")

    found = samples(
        content, profile({metric: pointer(name) for metric, name in places.items()}, time="/none")
    )
    assert found == {metric: (FORMS[metric], value) for metric, value in values.items()}


def test_without_a_time_a_message_is_of_its_arrival() -> None:
    assert read_json({"temperature": 1})[0].time_us == ARRIVAL
    assert time_of(None) == ARRIVAL


@pytest.mark.parametrize(
    ("text", "micros"),
    [
        ("2026-01-31T12:00:00Z", 1_769_860_800_000_000),
        ("2026-01-31t12:00:00z", 1_769_860_800_000_000),
        ("2026-01-31 12:00:00Z", 1_769_860_800_000_000),
        ("2026-01-31T12:00:00.25Z", 1_769_860_800_250_000),
        ("2026-01-31T12:00:00.123456789Z", 1_769_860_800_123_456),
        ("2026-01-31T14:30:00+02:30", 1_769_860_800_000_000),
        ("2026-01-31T12:00:00-00:00", 1_769_860_800_000_000),
        ("1969-12-31T23:59:59.5Z", -500_000),
    ],
)
def test_times_that_are_texts(text: str, micros: int) -> None:
    assert time_of(text) == micros


@given(
    moment=st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 29)),
    minutes=st.integers(-1439, 1439),
)
def test_a_time_as_text_is_exact_in_every_zone(moment: datetime, minutes: int) -> None:
    aware = moment.replace(tzinfo=UTC)
    text = aware.astimezone(timezone(timedelta(minutes=minutes))).isoformat()
    assert time_of(text) == from_datetime(aware)


@pytest.mark.parametrize(
    ("time", "unit_us", "micros"),
    [
        (1_769_860_800, 1_000_000, 1_769_860_800_000_000),
        (1_769_860_800.123456, 1_000_000, 1_769_860_800_123_456),
        (1_769_860_800_123, 1_000, 1_769_860_800_123_000),
        (1_769_860_800_123.5, 1_000, 1_769_860_800_123_500),
        (1_769_860_800_123_456, 1, 1_769_860_800_123_456),
        (0, 1_000_000, 0),
        (-1.5, 1_000_000, -1_500_000),
        (253_402_300_799, 1_000_000, 253_402_300_799_000_000),
        (-253_402_300_799_999_999, 1, -253_402_300_799_999_999),
    ],
)
def test_times_that_are_numbers(time: float, unit_us: int, micros: int) -> None:
    assert time_of(time, unit_us=unit_us) == micros


@pytest.mark.parametrize(
    "time",
    [
        253_402_300_800,
        -253_402_300_800,
        1e300,
        2**63,
        10**30,
        True,
        False,
        "NaN",
        "1769860800",
        "",
        "yesterday",
        "2026-01-31",
        "2026-01-31T12:00:00",
        "2026-02-30T12:00:00Z",
        "2026-01-31T12:00:60Z",
        "2026-01-31T12:00:00+24:00",
        "\0",
        [],
        {},
        [1_769_860_800],
    ],
)
def test_times_that_are_none(time: Any) -> None:
    assert refusal({"time": time, "temperature": 1}).startswith("message, time: a time as in RFC 3339")


def test_the_time_may_stand_anywhere() -> None:
    content = {"head": [{"at": 5}], "temperature": 1, "time": 7}
    pointed = profile({"temperature": "/temperature"}, time="/head/0/at")
    assert read_json(content, pointed)[0].time_us == 5_000_000
    # Of a flat object what holds the time is no metric.
    (found,) = read_json(content, profile(time="/head/0/at"))
    assert [metric for metric, _, _ in found.samples] == ["temperature", "time"]


@pytest.mark.parametrize("count", [2**63 - 1, -(2**63), 2**53 + 1, 0])
def test_an_integer_metric_keeps_every_digit(count: int) -> None:
    assert samples({"count": count}) == {"count": (Kind.INT, count)}


@pytest.mark.parametrize("count", [2**63, -(2**63) - 1, 2**64 - 1, 2**64, 1.5, 7.0])
def test_other_numbers_are_told_as_doubles(count: float) -> None:
    # Whether they fit their metric is decided with all others.
    assert samples({"count": count}) == {"count": (NUMBER, float(count))}


def test_a_whole_number_of_any_other_metric_is_a_double() -> None:
    found = samples({"temperature": 3, "unheard": 2**53})
    assert found == {"temperature": (NUMBER, 3.0), "unheard": (NUMBER, 2.0**53)}
    assert all(type(value) is float for _, value in found.values())


def test_null_is_no_value() -> None:
    assert samples({"temperature": None, "count": 1, "location": None}) == {"count": (Kind.INT, 1)}
    assert refusal({"temperature": None, "time": 1}) == "message: states no value"
    pointed = profile({"temperature": "/a", "count": "/b"})
    assert samples({"a": None, "b": 1}, pointed) == {"count": (Kind.INT, 1)}
    assert refusal({"a": None, "c": 1}, pointed) == "message: states no value"


def test_an_array_is_a_reading_for_each_object() -> None:
    found = read_json([{"time": 1, "count": 1}, {"count": 2}, {"time": 1, "count": 3}])
    assert [(reading.time_us, reading.samples) for reading in found] == [
        (1_000_000, [("count", Kind.INT, 1)]),
        (ARRIVAL, [("count", Kind.INT, 2)]),
        (1_000_000, [("count", Kind.INT, 3)]),
    ]


def test_an_array_has_bounds() -> None:
    assert len(read_json([{"count": 1}] * MAX_OBJECTS)) == MAX_OBJECTS
    assert "1 to 1,000 objects, not 1,001" in refusal([{"count": 1}] * (MAX_OBJECTS + 1))
    assert "1 to 1,000 objects, not 0" in refusal([])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ([{"count": 1}, []], "message[1]: an object is expected, not an array"),
        ([{"count": 1}, {}], "message[1]: states no value"),
        ([{"count": 1}, {"count": 1, "time": "x"}], "message[1], time: a time"),
        (None, "message: an object is expected, not null"),
        (7, "message: an object is expected, not a number"),
        ("7", "message: an object is expected, not text"),
        (True, "message: an object is expected, not a truth value"),
        ({"a": {"b": 1}}, "message, 'a': a number, text or truth value is expected, not an object"),
        ({"a": [1]}, "message, 'a': a number, text or truth value is expected, not an array"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(content: Any, told: str) -> None:
    assert refusal(content).startswith(told)


def test_what_nests_is_read_by_pointers_only() -> None:
    content = {"env": {"values": [1.5, 2.5]}, "n": 9}
    assert "'env'" in refusal(content)
    found = samples(content, profile({"temperature": "/env/values/1", "count": "/n"}))
    assert found == {"temperature": (NUMBER, 2.5), "count": (Kind.INT, 9)}


@pytest.mark.parametrize(
    "pointer",
    [
        "/a/2",
        "/a/-",
        "/a/-/0",
        "/a/01",
        "/a/0x",
        "/a/+1",
        "/a/x",
        "/b/0",
        "/c/0",
        "/a/0/0",
        "/a/" + "9" * 200,
    ],
)
def test_a_pointer_to_nothing_is_no_value(pointer: str) -> None:
    content = {"a": [1, 2], "b": "text", "c": 7, "n": 1}
    assert samples(content, profile({"temperature": pointer, "count": "/n"})) == {"count": (Kind.INT, 1)}
    assert read_json(content, profile({"count": "/n"}, time=pointer))[0].time_us == ARRIVAL


@pytest.mark.parametrize(
    ("pointer", "value"),
    [("/a~1b", 1), ("/m~0n", 2), ("/~01", 3), ("/", 4), ("/-", 5), ("/ ", 6), ("/%41", 7)],
)
def test_escapes_of_pointers(pointer: str, value: int) -> None:
    content = {"a/b": 1, "m~n": 2, "~1": 3, "": 4, "-": 5, " ": 6, "%41": 7}
    assert samples(content, profile({"count": pointer})) == {"count": (Kind.INT, value)}


@pytest.mark.parametrize(
    ("place", "point"),
    [
        ({"latitude": 90, "longitude": -180}, (90.0, -180.0, None)),
        ({"latitude": 1.5, "longitude": 2, "altitude": 3}, (1.5, 2.0, 3.0)),
        ({"latitude": 1, "longitude": 2, "altitude": None, "accuracy": 9}, (1.0, 2.0, None)),
    ],
)
def test_a_location(place: Any, point: Any) -> None:
    assert samples({"location": place}) == {LOCATION: (Kind.POINT, point)}
    assert samples({"gps": place}, profile({LOCATION: "/gps"})) == {LOCATION: (Kind.POINT, point)}


@pytest.mark.parametrize(
    "place",
    [
        7,
        "52.5,13.4",
        [52.5, 13.4],
        {},
        {"latitude": 1},
        {"latitude": "1", "longitude": 2},
        {"latitude": True, "longitude": 2},
        {"latitude": 90.1, "longitude": 2},
        {"latitude": 1, "longitude": -180.1},
        {"latitude": 1, "longitude": 2, "altitude": "3"},
        {"latitude": 1, "longitude": 2, "altitude": False},
        {"latitude": None, "longitude": 2},
    ],
)
def test_what_is_no_location(place: Any) -> None:
    assert refusal({"location": place, "count": 1}).startswith("message, 'location': an object of latitude")


def test_texts_have_bounds() -> None:
    assert samples({"state": "ü" * MAX_STRING}) == {"state": (Kind.STRING, "ü" * MAX_STRING)}
    for text in ("u" * (MAX_STRING + 1), "a\0b"):
        assert "'state': longer than 4,096 characters, or holds a NUL" in refusal({"state": text})


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b"\xff",
        b'{"count": NaN}',
        b'{"count": Infinity}',
        b'{"count": 1e400}',
        b'{"state": "\\ud800"}',
        b'{"count": 1} x',
        b"[" * 100_000,
        b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    ],
)
def test_what_is_no_json(payload: bytes) -> None:
    told = refusal(payload)
    assert told.startswith("no JSON: ")
    assert len(told) < 200


def test_of_a_key_that_stands_twice_the_last_counts() -> None:
    (found,) = read_bytes(b'{"count": 1, "time": 1, "count": 2, "time": 2}')
    assert found == Reading("pump-1", 2_000_000, [("count", Kind.INT, 2)])
