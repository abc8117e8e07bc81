"""What is sent is what PostgreSQL holds; what cannot be stored is refused by name."""

import math
import struct
import time
from typing import Any

import grpc
import pytest

from tests.rpc.ingest.neighbours import Ingest, Refused, reading
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh.type.v1.value_pb2 import Point, Value

DAY_US = 86_400_000_000
INVALID = grpc.StatusCode.INVALID_ARGUMENT
ALL_OR_NOTHING = ingest_pb2.MODE_ALL_OR_NOTHING


def now_us() -> int:
    return time.time_ns() // 1000


def reasons(response: ingest_pb2.IngestTelemetryResponse) -> list[tuple[int, str, str]]:
    return [
        (
            refusal.reading_index,
            refusal.metric,
            ErrorReason.Name(refusal.reason).removeprefix("ERROR_REASON_"),
        )
        for refusal in response.refusals
    ]


def counts(response: ingest_pb2.IngestTelemetryResponse) -> tuple[int, int]:
    return response.stored_samples, response.refused_samples


EXACT_VALUES: list[tuple[str, Value, Any]] = [
    ("temperature", Value(double_value=21.5), 21.5),
    ("temperature", Value(double_value=0.1), 0.1),
    ("temperature", Value(double_value=-0.0), -0.0),
    ("temperature", Value(double_value=5e-324), 5e-324),
    ("temperature", Value(double_value=2.2250738585072011e-308), 2.2250738585072011e-308),
    ("temperature", Value(double_value=1.7976931348623157e308), 1.7976931348623157e308),
    ("count", Value(int_value=0), 0),
    ("count", Value(int_value=2**63 - 1), 2**63 - 1),
    ("count", Value(int_value=-(2**63)), -(2**63)),
    ("count", Value(int_value=2**53 + 1), 2**53 + 1),
    ("running", Value(bool_value=True), True),
    ("running", Value(bool_value=False), False),
    ("state", Value(string_value=""), ""),
    (
        "state",
        Value(string_value="läuft 🚰 \\ \" ' {} , \t\n\r \x01 \u2028 NULL"),
        "läuft 🚰 \\ \" ' {} , \t\n\r \x01 \u2028 NULL",
    ),
    ("state", Value(string_value="é" * 4096), "é" * 4096),
    ("inlet", Value(point_value=Point(latitude=-90, longitude=180, altitude=-0.0)), (-90.0, 180.0, -0.0)),
    ("location", Value(point_value=Point(latitude=52.5, longitude=13.4, altitude=34.5)), (52.5, 13.4, 34.5)),
]


def bits(value: Any) -> Any:
    """Return what tells values apart exactly: a float's bits, anything else with its type."""
    if isinstance(value, tuple):
        return tuple(map(bits, value))
    if isinstance(value, float):
        return struct.pack("<d", value)
    return type(value), value


async def test_every_kind_comes_back_exactly(ingest: Ingest) -> None:
    start = now_us()
    sent = [
        reading(time_us=start + index, values={metric: value})
        for index, (metric, value, _) in enumerate(EXACT_VALUES)
    ]
    response = await ingest.send(*sent)
    assert counts(response) == (len(sent), 0)
    assert response.ack_level == ingest_pb2.ACK_LEVEL_DURABLE
    expected = {
        ("pump-1", metric, start + index): bits(value)
        for index, (metric, _, value) in enumerate(EXACT_VALUES)
    }
    assert {key: bits(value) for key, value in (await ingest.samples()).items()} == expected


async def test_numbers_and_location_are_stored_as_their_metrics_kind(ingest: Ingest) -> None:
    at = now_us()
    whole = float(2**53 - 1)
    response = await ingest.send(
        reading(time_us=at, temperature=3.0, count=-whole, location=Point(latitude=1.5, longitude=-2.5))
    )
    assert counts(response) == (3, 0)
    found = await ingest.samples()
    altitude = found["pump-1", "location", at][2]
    assert math.isnan(altitude)
    assert found == {
        ("pump-1", "temperature", at): 3.0,
        ("pump-1", "count", at): -(2**53 - 1),
        ("pump-1", "location", at): (1.5, -2.5, altitude),
    }


async def test_an_absent_time_is_the_servers(ingest: Ingest) -> None:
    before = now_us()
    await ingest.send(reading(temperature=1.0), reading("pump-2", temperature=2.0))
    times = {time_us for _, _, time_us in await ingest.samples()}
    assert len(times) == 1
    assert before <= times.pop() <= now_us()


async def test_times_are_cut_to_the_microsecond(ingest: Ingest) -> None:
    sent = reading(temperature=1.0)
    sent.time.seconds, sent.time.nanos = now_us() // 1_000_000, 123_456_999
    await ingest.send(sent)
    assert list(await ingest.samples()) == [
        ("pump-1", "temperature", sent.time.seconds * 1_000_000 + 123_456)
    ]


async def test_of_equal_times_in_one_request_the_later_stays(ingest: Ingest) -> None:
    at = now_us()
    response = await ingest.send(*[reading(time_us=at, temperature=value) for value in (1.0, 3.0, 2.0)])
    assert counts(response) == (3, 0)
    assert await ingest.samples() == {("pump-1", "temperature", at): 2.0}


async def test_many_devices_and_hours_in_one_request(ingest: Ingest) -> None:
    start = now_us() - 6 * DAY_US
    for index in range(50):
        ingest.assets.add(f"beacon-{index}")
    sent = [
        reading(
            f"beacon-{index % 50}", time_us=start + index * 40_000_000, temperature=float(index), count=index
        )
        for index in range(10_000)
    ]
    assert counts(await ingest.send(*sent)) == (20_000, 0)
    found = await ingest.samples()
    assert len(found) == 20_000
    for index in (0, 1, 4_999, 9_999):
        at = start + index * 40_000_000
        assert found[f"beacon-{index % 50}", "temperature", at] == float(index)
        assert found[f"beacon-{index % 50}", "count", at] == index


async def test_what_cannot_be_stored_is_refused_by_name_and_the_rest_stored(ingest: Ingest) -> None:
    at = now_us()
    response = await ingest.send(
        reading(time_us=at, temperature=1.0, ghost=2.0),
        reading("absent", time_us=at, temperature=1.0, count=1.0),
        reading("foreign", time_us=at, temperature=1.0),
        reading("off", time_us=at, temperature=1.0),
        reading(time_us=at, count=1.5, values={"state": Value(double_value=1)}),
        reading(time_us=at - 7 * DAY_US - 60_000_000, temperature=1.0),
        reading(time_us=at + 660_000_000, temperature=1.0),
        reading(time_us=0, temperature=1.0),
        reading(time_us=4_102_444_800_000_000, temperature=1.0),
        reading(time_us=at, temperature=1.0, values={"temperature": Value(double_value=1)}),
        reading(
            time_us=at,
            location=Point(),
            values={"location": Value(point_value=Point()), "running": Value(bool_value=True)},
        ),
        mode=ingest_pb2.MODE_PARTIAL,
    )
    assert reasons(response) == [
        (0, "ghost", "METRIC_UNKNOWN"),
        (1, "", "DEVICE_UNKNOWN"),
        (2, "", "DEVICE_UNKNOWN"),
        (3, "", "DEVICE_DISABLED"),
        (4, "count", "KIND_MISMATCH"),
        (4, "state", "KIND_MISMATCH"),
        (5, "", "TIME_OUT_OF_WINDOW"),
        (6, "", "TIME_OUT_OF_WINDOW"),
        (7, "", "TIME_OUT_OF_WINDOW"),
        (8, "", "TIME_OUT_OF_WINDOW"),
        (9, "temperature", "METRIC_REPEATED"),
        (9, "temperature", "METRIC_REPEATED"),
        (10, "location", "METRIC_REPEATED"),
        (10, "location", "METRIC_REPEATED"),
    ]
    assert counts(response) == (2, 15)
    assert await ingest.samples() == {("pump-1", "temperature", at): 1.0, ("pump-1", "running", at): True}
    assert await ingest.samples(tenant="other") == {}


async def test_anothers_device_is_refused_as_an_absent_one(ingest: Ingest) -> None:
    response = await ingest.send(reading("absent0", temperature=1.0), reading("foreign", temperature=1.0))
    absent, foreign = response.refusals
    assert absent.reason == foreign.reason == ErrorReason.ERROR_REASON_DEVICE_UNKNOWN
    assert absent.message.replace("absent0", "foreign") == foreign.message


async def test_all_or_nothing(ingest: Ingest) -> None:
    good, bad = reading(temperature=1.0, count=1.0), reading("pump-2", temperature=1.0, ghost=1.0)
    response = await ingest.send(good, bad, mode=ALL_OR_NOTHING)
    assert counts(response) == (0, 4)
    assert reasons(response) == [
        (0, "", "BATCH_REFUSED"),
        (1, "ghost", "METRIC_UNKNOWN"),
        (1, "temperature", "BATCH_REFUSED"),
    ]
    assert await ingest.samples() == {}
    assert counts(await ingest.send(good, mode=ALL_OR_NOTHING)) == (2, 0)


async def test_the_first_thousand_refusals_are_told_and_all_counted(ingest: Ingest) -> None:
    response = await ingest.send(*[reading("absent", temperature=1.0)] * 3_000, reading(temperature=1.0))
    assert counts(response) == (1, 3_000)
    assert [refusal.reading_index for refusal in response.refusals] == list(range(1_000))


NAN, INF = float("nan"), float("inf")


BAD_READINGS = [
    (reading(temperature=NAN), "readings[0].numbers['temperature']"),
    (reading(temperature=INF), "readings[0].numbers['temperature']"),
    (
        reading(values={"temperature": Value(double_value=-INF)}),
        "readings[0].values['temperature'].double_value",
    ),
    (reading(values={"state": Value(string_value="a\0b")}), "readings[0].values['state'].string_value"),
    (
        reading(values={"state": Value(string_value="x" * 4097)}),
        "readings[0].values['state'].string_value",
    ),
    (reading(values={"temperature": Value()}), "readings[0].values['temperature'].kind"),
    (reading(location=Point(latitude=90.1)), "readings[0].location.latitude"),
    (reading(location=Point(longitude=NAN)), "readings[0].location.longitude"),
    (reading(location=Point(altitude=NAN)), "readings[0].location.altitude"),
    (reading(), "readings[0]"),
    *[
        (reading(device_id, temperature=1.0), "readings[0].device_id")
        for device_id in ("", "a/b", "*", ">", "a b", "Pump", "-a", "a\n", "x" * 10_240, "ä")
    ],
]


async def test_bad_readings_are_invalid(ingest: Ingest) -> None:
    for sent, field in BAD_READINGS:
        failed = await ingest.refused(sent, reading(temperature=1.0))
        assert failed == Refused(INVALID, "INVALID_FIELD", {}, [field])
    assert await ingest.samples() == {}


async def test_bad_metric_names_are_invalid(ingest: Ingest) -> None:
    for metric in ("", "a b", "a/b", "1a", "x" * 64):
        failed = await ingest.refused(reading(values={metric: Value(double_value=1)}))
        assert (failed.code, failed.reason) == (INVALID, "INVALID_FIELD")


@pytest.mark.parametrize(
    ("seconds", "nanos", "expected"),
    [
        (2**62, 0, "TIME_OUT_OF_WINDOW"),
        (-(2**62), 0, "TIME_OUT_OF_WINDOW"),
        (1, -1, "INVALID_FIELD"),
        (1, 1_000_000_000, "INVALID_FIELD"),
    ],
)
async def test_times_that_are_none(ingest: Ingest, seconds: int, nanos: int, expected: str) -> None:
    sent = reading(temperature=1.0)
    sent.time.seconds, sent.time.nanos = seconds, nanos
    if expected == "INVALID_FIELD":
        assert await ingest.refused(sent) == Refused(INVALID, expected, {}, ["readings[0].time.nanos"])
    else:
        assert reasons(await ingest.send(sent)) == [(0, "", expected)]


async def test_every_empty_reading_is_named(ingest: Ingest) -> None:
    failed = await ingest.refused(reading(), reading(temperature=1.0), reading("pump-2"))
    assert failed.fields == ["readings[0]", "readings[2]"]


async def test_too_many_or_no_readings(ingest: Ingest) -> None:
    assert await ingest.refused(*[reading(temperature=1.0)] * 10_001) == Refused(
        INVALID, "INVALID_FIELD", {}, ["readings"]
    )
    assert await ingest.refused() == Refused(INVALID, "INVALID_FIELD", {}, ["readings"])


BAD_FIELDS: list[dict[str, Any]] = [
    {"request_id": "a", "writer_id": "w", "sequence": 1},
    {"writer_id": "w"},
    {"sequence": 1},
    {"request_id": "a b"},
    {"request_id": "x" * 129},
    {"writer_id": "w/1", "sequence": 1},
    {"writer_id": "w", "sequence": 2**63},
    {"backfill_id": "../x"},
    {"mode": 9},
    {"ack_level": 9},
]


async def test_bad_requests_are_invalid(ingest: Ingest) -> None:
    for fields in BAD_FIELDS:
        failed = await ingest.refused(reading(temperature=1.0), **fields)
        assert (failed.code, failed.reason) == (INVALID, "INVALID_FIELD"), fields


async def test_who_may_write(ingest: Ingest) -> None:
    failed = await ingest.refused(reading(temperature=1.0), caller=ingest.caller(permissions=["twin:read"]))
    assert failed == Refused(
        grpc.StatusCode.PERMISSION_DENIED, "PERMISSION_MISSING", {"permission": "telemetry:write"}
    )
    assert await ingest.samples() == {}
