"""What a stream's batch holds, as plain data; and what is answered to it by either door."""

import hashlib
import math
import random
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.columns import SentColumns, digest_as_sent
from ingest_svc.conversion import (
    MAX_READINGS,
    to_content,
    to_definitions,
    to_profiles,
    to_response,
    to_result,
)
from ingest_svc.outcome import VALUE_REFUSED, Outcome, Refusal, RefusedContent
from ingest_svc.profile import JointRules, MetricProfile, QualityRules
from ingest_svc.reading import NUMBER, Reading
from ingest_svc.series_table import SeriesDefinition
from meshkit.units import Conversion
from telemetry_store.columns import Kind
from telemetry_store.requests import WriteResult
from twinmesh.asset.v1 import device_type_service_pb2 as device_type_pb2
from twinmesh.asset.v1.asset_service_pb2 import Asset
from twinmesh.asset.v1.device_service_pb2 import Device
from twinmesh.asset.v1.profile_service_pb2 import BatchGetProfilesResponse
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh.type.v1.value_pb2 import VALUE_KIND_DOUBLE, VALUE_KIND_INT, Point, Value

GOOD = ingest_pb2.Reading(device_id="pump-1", numbers={"x": 1.0, "y": 2.0})


def over_the_wire(batch: ingest_pb2.Batch) -> ingest_pb2.Batch:
    return ingest_pb2.Batch.FromString(batch.SerializeToString())


def test_columns_become_arrays() -> None:
    batch = ingest_pb2.Batch(
        columns=ingest_pb2.Columns(
            series=[0, 2**32 - 1],
            run_lengths=[1, 2**32 - 1],
            times=[-(2**63), 2**63 - 1],
            double_values=[1.5, math.nan],
            int_values=[-(2**63), 2**63 - 1],
            bool_values=[True, False],
            string_values=["läuft", ""],
            point_values=[
                Point(latitude=1, longitude=2),
                Point(latitude=1, longitude=2, altitude=3),
                Point(altitude=math.nan),
            ],
        )
    )
    columns = to_content(over_the_wire(batch))
    assert isinstance(columns, SentColumns)
    np.testing.assert_array_equal(columns.aliases, np.array([0, 2**32 - 1], np.uint32), strict=True)
    np.testing.assert_array_equal(columns.run_lengths, np.array([1, 2**32 - 1], np.int64), strict=True)
    np.testing.assert_array_equal(columns.times, np.array([-(2**63), 2**63 - 1], np.int64), strict=True)
    assert {kind: values.dtype for kind, values in columns.values.items()} == {
        Kind.DOUBLE: np.float64,
        Kind.INT: np.int64,
        Kind.BOOL: np.bool_,
        Kind.STRING: np.int32,
        Kind.POINT: np.float64,
    }
    np.testing.assert_array_equal(columns.values[Kind.DOUBLE], [1.5, math.nan])
    assert columns.values[Kind.INT].tolist() == [-(2**63), 2**63 - 1]
    assert columns.values[Kind.BOOL].tolist() == [True, False]
    assert [columns.texts[code] for code in columns.values[Kind.STRING]] == ["läuft", ""]
    # An altitude that was sent as NaN is not an absent one.
    np.testing.assert_array_equal(columns.values[Kind.POINT], [[1, 2, math.nan], [1, 2, 3], [0, 0, math.inf]])


def strings(**columns: Any) -> SentColumns:
    content = to_content(over_the_wire(ingest_pb2.Batch(columns=ingest_pb2.Columns(**columns))))
    assert isinstance(content, SentColumns)
    return content


@given(st.lists(st.text(max_size=3) | st.sampled_from(["on", "off"]), min_size=1), st.randoms())
def test_strings_are_the_same_in_either_form(texts: list[str], chance: random.Random) -> None:
    samples = {"series": [1], "run_lengths": [len(texts)], "times": range(len(texts))}
    dictionary = [*set(texts), *set(texts), "unused"]
    chance.shuffle(dictionary)
    places = [
        chance.choice([place for place, known in enumerate(dictionary) if known == text]) for text in texts
    ]
    plain = strings(**samples, string_values=texts)
    coded = strings(**samples, string_dictionary=dictionary, string_codes=places)
    assert coded.unreadable is None
    assert [coded.texts[code] for code in coded.values[Kind.STRING]] == texts
    digest = digest_as_sent(plain, all_or_nothing=False)
    assert digest_as_sent(coded, all_or_nothing=False) == digest
    places[-1] = dictionary.index("unused")
    other = strings(**samples, string_dictionary=dictionary, string_codes=places)
    assert (digest_as_sent(other, all_or_nothing=False) == digest) == (texts[-1] == "unused")


def test_strings_without_a_meaning_are_told() -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"string_dictionary": ["a", "b"], "string_codes": [0, 2]}, "string_codes has 2, "),
        ({"string_codes": [0]}, "string_dictionary has 0 texts"),
        ({"string_dictionary": ["a"], "string_codes": [2**32 - 1]}, "string_codes has 4294967295, "),
        ({"string_values": ["a"], "string_dictionary": ["a"], "string_codes": [0]}, "send one form"),
        ({"string_values": ["a"], "string_dictionary": ["a"]}, "send one form"),
    ]
    digests = set()
    for columns, message in cases:
        sent = strings(**columns)
        assert sent.unreadable is not None
        assert message in sent.unreadable.message
        digests.add(digest_as_sent(sent, all_or_nothing=False))
        assert digest_as_sent(strings(**columns), all_or_nothing=False) in digests
    assert len(digests) == len(cases)


@pytest.mark.parametrize("batch", [ingest_pb2.Batch(), ingest_pb2.Batch(columns=ingest_pb2.Columns())])
def test_a_batch_of_nothing_is_empty_columns(batch: ingest_pb2.Batch) -> None:
    columns = to_content(batch)
    assert isinstance(columns, SentColumns)
    assert (len(columns), len(columns.aliases), columns.values) == (0, 0, {})


def test_readings_are_as_those_of_a_request() -> None:
    assert to_content(over_the_wire(ingest_pb2.Batch(readings=[GOOD]))) == [
        Reading("pump-1", None, [("x", NUMBER, 1.0), ("y", NUMBER, 2.0)])
    ]


@pytest.mark.parametrize(
    ("batch", "reason", "message", "samples"),
    [
        (
            ingest_pb2.Batch(readings=[GOOD], columns=ingest_pb2.Columns(times=[1, 2, 3])),
            "COLUMNS_INVALID",
            "not both",
            5,
        ),
        (
            ingest_pb2.Batch(readings=[GOOD], columns=ingest_pb2.Columns()),
            "COLUMNS_INVALID",
            "not both",
            2,
        ),
        (
            ingest_pb2.Batch(readings=[GOOD, ingest_pb2.Reading(device_id="A", numbers={"x": 1.0})]),
            "INVALID_FIELD",
            "readings[1].device_id: ",
            3,
        ),
        (
            ingest_pb2.Batch(readings=[GOOD, ingest_pb2.Reading(device_id="a", values={"x": Value()})]),
            "INVALID_FIELD",
            "readings[1].values['x'].kind: ",
            3,
        ),
        (
            ingest_pb2.Batch(readings=[ingest_pb2.Reading(device_id="a", location=Point(latitude=91))]),
            "INVALID_FIELD",
            "readings[0].location.latitude: ",
            1,
        ),
        (
            ingest_pb2.Batch(readings=[GOOD, ingest_pb2.Reading(device_id="a")]),
            "INVALID_FIELD",
            "readings[1]: states no value",
            2,
        ),
        (
            ingest_pb2.Batch(readings=[GOOD] * (MAX_READINGS + 1)),
            "INVALID_FIELD",
            "readings: ",
            2 * (MAX_READINGS + 1),
        ),
    ],
)
def test_what_refuses_a_batch(batch: ingest_pb2.Batch, reason: str, message: str, samples: int) -> None:
    refused = to_content(over_the_wire(batch))
    assert isinstance(refused, RefusedContent)
    assert refused.why[0] == ErrorReason.Value(f"ERROR_REASON_{reason}")
    assert message in refused.why[1]
    assert refused.samples == samples
    # The same content again, whatever carries it, is the same; other content is not.
    again = over_the_wire(batch)
    again.sequence, again.traceparent = 7, "00-0-0-00"
    assert to_content(again) == refused
    again.readings[0].device_id = "pump-2"
    other = to_content(again)
    assert isinstance(other, RefusedContent)
    assert other.digest != refused.digest


@pytest.mark.parametrize(
    "change",
    [
        {"readings": [ingest_pb2.Reading(device_id="A", values={"x": Value(int_value=1)})]},
        {"readings": [ingest_pb2.Reading(device_id="A", values={"x": Value(double_value=1)})]},
        {"readings": [ingest_pb2.Reading(device_id="A", values={"x": Value(double_value=math.nan)})]},
        {"readings": [ingest_pb2.Reading(device_id="A", values={"x": Value()})]},
        {"readings": [ingest_pb2.Reading(device_id="A", numbers={"x": 1})]},
        {"readings": [ingest_pb2.Reading(device_id="A", location=Point(altitude=math.inf))]},
        {"readings": [ingest_pb2.Reading(device_id="A", location=Point())]},
        {"readings": [ingest_pb2.Reading(device_id="A", time=Timestamp(nanos=-1))]},
        {"readings": [ingest_pb2.Reading(device_id="A", time=Timestamp())]},
        {"readings": [ingest_pb2.Reading(device_id="A")], "mode": ingest_pb2.MODE_ALL_OR_NOTHING},
        {"readings": [ingest_pb2.Reading(device_id="A")] * 2},
        {"columns": ingest_pb2.Columns()},
        {"columns": ingest_pb2.Columns(times=[1])},
        {"columns": ingest_pb2.Columns(series=[1, 2], run_lengths=[1])},
        {"columns": ingest_pb2.Columns(double_values=[math.nan])},
    ],
)
def test_other_content_has_another_digest_also_when_it_is_refused(change: dict[str, Any]) -> None:
    fields: dict[str, Any] = {"readings": [ingest_pb2.Reading(device_id="A")], **change}
    assert _refused_digest(ingest_pb2.Batch(**fields)) != _refused_digest(
        ingest_pb2.Batch(readings=[ingest_pb2.Reading(device_id="A")])
    )


def test_the_digest_of_what_is_refused_never_changes() -> None:
    batch = ingest_pb2.Batch(
        mode=ingest_pb2.MODE_ALL_OR_NOTHING,
        columns=ingest_pb2.Columns(series=[3], run_lengths=[1], times=[5], string_values=["ä"]),
        readings=[
            ingest_pb2.Reading(
                device_id="A",
                time=Timestamp(seconds=1, nanos=-1),
                values={"b": Value(), "a": Value(double_value=-math.inf), "c": Value(int_value=2**60)},
                numbers={"a": math.nan},
                location=Point(latitude=91, altitude=math.nan),
            )
        ],
    )
    beside = hashlib.sha256(
        b"columns/1\x01"
        + struct.pack("<3Q", 1, 1, 1)
        + struct.pack("<3q", 3, 1, 5)
        + struct.pack("<BQq", 4, 1, 1)
        + "ä".encode()
    ).hexdigest()
    written = (
        '["refused/1",true,[["A",[1,-1],[["a",1,-Infinity],["a",0,NaN],["b",-1,null],'
        f'["c",2,1152921504606846976],["location",5,[91.0,0.0,NaN]]]]],"{beside}"]'
    )
    assert _refused_digest(batch) == hashlib.sha256(written.encode()).digest()


def _refused_digest(batch: ingest_pb2.Batch) -> bytes:
    refused = to_content(over_the_wire(batch))
    assert isinstance(refused, RefusedContent)
    return refused.digest


def test_definitions_keep_their_aliases() -> None:
    sent = ingest_pb2.SeriesDef(alias=7, device_id="a", metric="m", kind=VALUE_KIND_INT, unit="K")
    assert to_definitions([sent]) == [(7, SeriesDefinition("a", "m", Kind.INT, "K"))]


def test_a_response_is_what_was_recorded() -> None:
    unknown = Refusal(1, "pump-2", "", ErrorReason.ERROR_REASON_DEVICE_UNKNOWN, "unknown")
    recorded = to_result(Outcome([unknown], stored_samples=2, refused_samples=1), 5)
    assert recorded.sequence == 5
    response = to_response(
        WriteResult(recorded.SerializeToString(), duplicate=True), [], ack_level=ingest_pb2.ACK_LEVEL_DURABLE
    )
    assert response == ingest_pb2.IngestTelemetryResponse(
        ack_level=ingest_pb2.ACK_LEVEL_DURABLE,
        stored_samples=2,
        refused_samples=1,
        refusals=recorded.refusals,
        duplicate=True,
    )


def test_readings_that_the_database_refuses_are_told_one_by_one() -> None:
    readings = [
        Reading(device_id, None, [("x", NUMBER, 1.0)]) for device_id in ("pump-1", "pump-2", "pump-3")
    ]
    unknown = Refusal(1, "pump-2", "", ErrorReason.ERROR_REASON_DEVICE_UNKNOWN, "unknown")
    reason, message = VALUE_REFUSED
    recorded = to_result(Outcome([unknown], refused_samples=3, reason=reason, message=message), 0)
    response = to_response(
        WriteResult(recorded.SerializeToString(), duplicate=False),
        readings,
        ack_level=ingest_pb2.ACK_LEVEL_DURABLE,
    )
    assert (response.stored_samples, response.refused_samples) == (0, 3)
    assert [
        (told.reading_index, told.device_id, told.reason, told.message) for told in response.refusals
    ] == [
        (0, "pump-1", reason, message),
        (1, "pump-2", ErrorReason.ERROR_REASON_DEVICE_UNKNOWN, "unknown"),
        (2, "pump-3", reason, message),
    ]


def test_what_is_timely_within_nanoseconds_is_within_a_microsecond() -> None:
    kind = device_type_pb2.DeviceType(
        id="pump", metrics=[device_type_pb2.MetricDefinition(name="flow", kind=VALUE_KIND_INT)]
    )
    kind.quality.timely_within.nanos = 1
    answer = BatchGetProfilesResponse(
        devices=[Device(id="pump-1", device_type_id="pump")], device_types=[kind]
    )
    metrics = to_profiles(answer)["pump-1"].metrics
    # The part of 0 that an age of 0 is, is no number, and would be no quality.
    assert [metric.quality.timely_us for metric in metrics.values()] == [1, 1]


def test_a_profile_holds_all_that_a_type_says_of_a_metric() -> None:
    metric = device_type_pb2.MetricDefinition(
        name="pressure",
        kind=VALUE_KIND_DOUBLE,
        unit="bar",
        device_unit="kPa",
        aliases=["p"],
        minimum=-1,
        range_policy=device_type_pb2.RANGE_POLICY_REFUSE,
        max_rate=2.5,
        anomaly=device_type_pb2.AnomalyRules(threshold=7, half_life=99),
    )
    metric.interval.FromMilliseconds(1_500)
    other = device_type_pb2.MetricDefinition(
        name="flow", kind=VALUE_KIND_DOUBLE, maximum=9, anomaly=device_type_pb2.AnomalyRules(disabled=True)
    )
    third = device_type_pb2.MetricDefinition(name="speed", kind=VALUE_KIND_DOUBLE)
    kind = device_type_pb2.DeviceType(
        id="pump",
        metrics=[metric, other, third],
        quality=device_type_pb2.QualityRules(completeness_weight=0, validity_weight=2),
        joint_anomaly=device_type_pb2.JointAnomalyRules(warm_up=48),
    )
    answer = BatchGetProfilesResponse(
        devices=[Device(id="pump-1", device_type_id="pump", asset_id="hall")],
        device_types=[kind],
        assets=[Asset(id="hall", location=Point(latitude=1, longitude=2))],
    )
    profile = to_profiles(answer)["pump-1"]
    assert (profile.asset_id, profile.asset_location) == ("hall", (1, 2, None))
    assert dict(profile.aliases) == {"p": "pressure"}
    together = JointRules(("pressure", "speed"), warm_up=48)
    rules = QualityRules(weights=(0, 0.5, 0.25, 0.25))
    judged_by = {
        "pressure": replace(
            rules,
            minimum=-1,
            interval_us=1_500_000,
            max_rate=2.5,
            anomaly_threshold=7,
            anomaly_half_life=99,
            joint=together,
        ),
        "flow": replace(rules, maximum=9, anomaly_threshold=math.inf),
        "speed": replace(rules, joint=together),
    }
    assert profile.metrics == {
        "pressure": MetricProfile(
            Kind.DOUBLE,
            "bar",
            conversion=Conversion(0.01, 0),
            bounds=(-1, math.inf),
            quality=judged_by["pressure"],
        ),
        "flow": MetricProfile(Kind.DOUBLE, "", quality=judged_by["flow"]),
        "speed": MetricProfile(Kind.DOUBLE, "", quality=judged_by["speed"]),
        "location": MetricProfile(Kind.POINT, "", quality=rules),
    }
