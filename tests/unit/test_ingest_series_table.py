"""What a stream's aliases stand for, and when it is decided again what may be stored under them."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.profile import DeviceProfile, MetricProfile
from ingest_svc.series_table import MAX_SERIES, SeriesDefinition, SeriesTable, definition_id
from meshkit.errors import InvalidArgument
from meshkit.units import conversion
from telemetry_store.columns import Kind
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

NOW = 1_700_000_000_000_000
METRICS = {"temperature": MetricProfile(Kind.DOUBLE, "°C"), "count": MetricProfile(Kind.INT, "")}
PROFILES = {
    "pump-1": DeviceProfile(device_type_id="pump", enabled=True, metrics=METRICS),
    "off": DeviceProfile(device_type_id="pump", enabled=False, metrics=METRICS),
}
TEMPERATURE = SeriesDefinition("pump-1", "temperature", Kind.DOUBLE, "")


def defined(*definitions: SeriesDefinition) -> SeriesTable:
    table = SeriesTable()
    table.define(list(enumerate(definitions)))
    return table


def resolve(
    table: SeriesTable, profiles: dict[str, DeviceProfile], *, version: int = 0, now_us: int = NOW
) -> list[tuple[int, str]]:
    """Resolve as intake does; returns what is stored, with its unit. Ids are 100 + alias."""
    table.outdate(version=version, now_us=now_us)
    made: list[tuple[int, str]] = []
    while aliases := table.unresolved(2):
        good = table.judge(aliases, profiles)
        table.settle(aliases, list(good), np.array(list(good), np.int32) + 100)
        made += [(alias, key.unit) for alias, (key, _) in good.items()]
    return made


def verdicts(table: SeriesTable) -> list[str]:
    return [
        ErrorReason.Name(ErrorReason.ValueType(verdict)).removeprefix("ERROR_REASON_") if verdict else ""
        for verdict in table.verdicts[table.kinds > 0].tolist()
    ]


def test_an_empty_table_has_no_places() -> None:
    table = SeriesTable()
    assert (table.places, table.unresolved(10)) == (0, [])
    table.define([])
    assert table.places == 0


def test_a_definition_may_be_repeated_and_not_changed() -> None:
    table = defined(TEMPERATURE)
    table.define([(0, TEMPERATURE), (1, TEMPERATURE)])
    assert np.flatnonzero(table.kinds).tolist() == [0, 1]
    with pytest.raises(InvalidArgument) as refused:
        table.define([(1, TEMPERATURE._replace(unit="K"))])
    assert refused.value.reason == ErrorReason.ERROR_REASON_ALIAS_REDEFINED
    assert refused.value.metadata == {"alias": "1"}
    assert "'K'" in refused.value.message


@given(st.lists(st.lists(st.integers(0, MAX_SERIES - 1), max_size=5), max_size=5))
def test_places_are_told_before_they_are_taken(messages: list[list[int]]) -> None:
    table = SeriesTable()
    seen: set[int] = set()
    for aliases in messages:
        definitions = [(alias, TEMPERATURE._replace(device_id=f"d-{alias}")) for alias in aliases]
        foretold = table.places_with(definitions)
        table.define(definitions)
        seen.update(aliases)
        assert table.places == foretold <= MAX_SERIES
        assert np.flatnonzero(table.kinds).tolist() == sorted(seen)
        assert {len(column) for column in (table.definition_ids, table.verdicts, table.series_ids)} == {
            foretold
        }
    assert all(table.definition(alias).device_id == f"d-{alias}" for alias in seen)


def test_growth_is_by_doubling() -> None:
    table = SeriesTable()
    sizes = []
    for alias in range(1_000):
        table.define([(alias, TEMPERATURE)])
        sizes.append(table.places)
    assert sorted(set(sizes)) == [4, 8, 16, 32, 64, 128, 256, 512, 1_024]


def test_what_is_held_against_a_series() -> None:
    table = defined(
        TEMPERATURE,
        TEMPERATURE._replace(unit="°C"),
        TEMPERATURE._replace(unit="bar"),
        TEMPERATURE._replace(kind=Kind.INT),
        TEMPERATURE._replace(metric="ghost"),
        TEMPERATURE._replace(device_id="off"),
        TEMPERATURE._replace(device_id="nobody"),
        SeriesDefinition("pump-1", "count", Kind.INT, ""),
    )
    assert resolve(table, PROFILES) == [(0, "°C"), (1, "°C"), (7, "")]
    assert verdicts(table) == [
        *["", "", "UNIT_MISMATCH", "KIND_MISMATCH", "METRIC_UNKNOWN", "DEVICE_DISABLED", "DEVICE_UNKNOWN", ""]
    ]
    assert table.series_ids[[0, 1, 7]].tolist() == [100, 101, 107]
    for alias in range(2, 7):
        reason, message = table.why(alias)
        assert reason == table.verdicts[alias]
        assert message
    assert "'°C'" in table.why(2)[1]


def test_only_what_is_new_is_decided_until_something_changed() -> None:
    table = defined(TEMPERATURE)
    assert resolve(table, PROFILES) == [(0, "°C")]
    table.define([(1, TEMPERATURE._replace(metric="count", kind=Kind.INT))])
    table.outdate(version=0, now_us=NOW + 29_999_999)
    assert table.unresolved(10) == [1]
    assert resolve(table, {}, now_us=NOW + 29_999_999) == []
    assert verdicts(table) == ["", "DEVICE_UNKNOWN"]


@pytest.mark.parametrize(
    ("version", "after_us", "again"),
    [
        (0, 29_999_999, False),
        (0, 30_000_000, True),
        (1, 499_999, False),  # Many changes come together.
        (1, 500_000, True),
        (1, 1, False),
        (0, -1, True),  # The clock was put back: nobody knows how old it is.
    ],
)
def test_when_everything_is_decided_again(version: int, after_us: int, *, again: bool) -> None:
    table = defined(TEMPERATURE, TEMPERATURE._replace(device_id="off"))
    resolve(table, PROFILES)
    table.outdate(version=version, now_us=NOW + after_us)
    assert table.unresolved(10) == ([0, 1] if again else [])


def test_a_change_seen_too_early_is_not_forgotten() -> None:
    table = defined(TEMPERATURE)
    resolve(table, PROFILES)
    resolve(table, {}, version=1, now_us=NOW + 1)
    assert verdicts(table) == [""]
    resolve(table, {}, version=1, now_us=NOW + 500_000)
    assert verdicts(table) == ["DEVICE_UNKNOWN"]


def test_a_series_keeps_its_id_and_gets_another_for_another_unit() -> None:
    table = defined(TEMPERATURE)
    resolve(table, PROFILES)
    disabled = {"pump-1": DeviceProfile(device_type_id="pump", enabled=False, metrics=METRICS)}
    assert resolve(table, disabled, version=1, now_us=NOW + 500_000) == []
    assert verdicts(table) == ["DEVICE_DISABLED"]
    assert resolve(table, PROFILES, version=2, now_us=NOW + 1_000_000) == [(0, "°C")]
    assert verdicts(table) == [""]
    with pytest.raises(LookupError):
        table.why(0)
    kelvin = DeviceProfile(
        device_type_id="pump", enabled=True, metrics={"temperature": MetricProfile(Kind.DOUBLE, "K")}
    )
    assert resolve(table, {"pump-1": kelvin}, version=3, now_us=NOW + 1_500_000) == [(0, "K")]


def test_what_a_client_says_of_the_unit_decides() -> None:
    metrics = {
        "fahrenheit": MetricProfile(Kind.DOUBLE, "°C", conversion=conversion("°F", "°C")),
        "plain": MetricProfile(Kind.DOUBLE, ""),
        "count": MetricProfile(Kind.INT, "m"),
    }
    profiles = {"pump-1": DeviceProfile("pump", True, metrics, aliases={"t": "fahrenheit"})}
    table = defined(
        SeriesDefinition("pump-1", "plain", Kind.DOUBLE, ""),
        SeriesDefinition("pump-1", "fahrenheit", Kind.DOUBLE, ""),
        SeriesDefinition("pump-1", "t", Kind.DOUBLE, "K"),
        SeriesDefinition("pump-1", "t", Kind.DOUBLE, "°C"),
        SeriesDefinition("pump-1", "count", Kind.INT, "mm"),
    )
    good = table.judge(table.unresolved(9), profiles)
    assert [(alias, key.metric, key.unit) for alias, (key, _) in good.items()] == [
        *[(0, "plain", ""), (1, "fahrenheit", "°C"), (2, "fahrenheit", "°C"), (3, "fahrenheit", "°C")]
    ]
    assert table.conversions is not None
    assert table.conversions[:4].ravel().tolist() == pytest.approx([1, 0, 5 / 9, -160 / 9, 1, -273.15, 1, 0])
    assert table.why(4) == (
        ErrorReason.ERROR_REASON_UNIT_MISMATCH,
        "metric 'count' is stored in 'm': kind INT is not converted, so 'mm' is no unit for it",
    )
    table.settle(table.unresolved(9), list(good), np.zeros(4, np.int32))
    table.define([(9, SeriesDefinition("pump-1", "plain", Kind.DOUBLE, ""))])
    assert table.conversions[8:].tolist() == [[1, 0]] * (table.places - 8)


def test_what_is_defined_while_others_are_decided_waits_for_its_turn() -> None:
    table = defined(TEMPERATURE)
    table.outdate(version=0, now_us=NOW)
    judged = table.unresolved(10)
    good = table.judge(judged, PROFILES)
    table.define([(1, TEMPERATURE)])
    table.settle(judged, list(good), np.array([5], np.int32))
    assert table.unresolved(10) == [1]


TEXTS = st.text(st.sampled_from("a1:-\0"), max_size=4)
DEFINITIONS = st.builds(SeriesDefinition, TEXTS, TEXTS, st.sampled_from(Kind), TEXTS)


@given(DEFINITIONS, DEFINITIONS)
def test_definitions_have_ids_of_their_own(one: SeriesDefinition, other: SeriesDefinition) -> None:
    assert (definition_id(one) == definition_id(other)) == (one == other)


def test_the_id_of_a_definition_stays() -> None:
    """It is part of recorded digests."""
    written = "6:pump-111:temperature1:°C".encode()
    expected = int.from_bytes(hashlib.sha256(written).digest()[:8], "little")
    assert definition_id(TEMPERATURE._replace(unit="°C")) == expected
