"""What is refused of a batch becomes letters that hold exactly that, and can be sent again."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc import columns as sent_columns
from ingest_svc import conversion, dead_letters
from ingest_svc.columns import SentColumns
from ingest_svc.dead_letters import Arrival
from ingest_svc.intake import Door, Origin
from ingest_svc.outcome import RefusedContent
from ingest_svc.reading import NUMBER, Reading
from ingest_svc.series_table import SeriesDefinition, SeriesTable
from ingest_svc.window import TimeWindow
from meshkit.identity import Principal, PrincipalKind
from telemetry_store.columns import Kind, coded
from telemetry_store.requests import DeadLetter, PayloadFormat, Replay, WriteRequest
from tests.unit.ingest_world import NOW, OFF, World
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1.dead_letter_service_pb2 import RefusedBatch
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

ARRIVAL = Arrival("user:ada", NOW, "ab" * 16)
WHY = (ErrorReason.ERROR_REASON_VALUE_INVALID, "why")
REPLAY = Replay(7, 0)
Found = dict[str, list[tuple[Any, ...]]]


@pytest.fixture
def world() -> World:
    made = World()
    made.assets.devices["off"] = OFF
    return made


async def taken(
    world: World, *readings: Reading, all_or_nothing: bool = False, replay: Replay | None = None
) -> WriteRequest:
    principal = Principal("acme", "hub", PrincipalKind.API_KEY, frozenset(["telemetry:write"]))
    return await world.intake.take_readings(
        Origin(principal, None, None, Door.UNARY, replay),
        readings,
        all_or_nothing=all_or_nothing,
        received_us=NOW,
    )


def readings_of(letter: DeadLetter) -> list[Reading]:
    assert letter.payload_format is PayloadFormat.READINGS
    return conversion.to_readings(RefusedBatch.FromString(letter.payload).readings)


GOOD = Reading("pump-1", NOW, [("x", Kind.DOUBLE.value, 1.0)])
ABSENT = Reading("gone", NOW, [("x", NUMBER, 1.0), ("y", Kind.STRING.value, "s")])
MIXED = Reading(
    "pump-2",
    None,
    [
        ("location", Kind.POINT.value, (1.0, 2.0, None)),
        ("location", Kind.POINT.value, (3.0, 4.0, 5.0)),
        ("new", Kind.INT.value, 3),
        ("other", Kind.BOOL.value, True),
        ("x", Kind.STRING.value, "text"),
    ],
)


async def test_a_batch_of_readings_leaves_a_letter_per_reason_with_what_is_refused(world: World) -> None:
    request = await taken(world, GOOD, ABSENT, MIXED, Reading("off", 5, [("x", NUMBER, 2.0)]))
    assert [
        (letter.reason, list(letter.device_ids), letter.sample_count, readings_of(letter))
        for letter in request.dead_letters
    ] == [
        ("DEVICE_UNKNOWN", ["gone"], 2, [ABSENT]),
        ("METRIC_REPEATED", ["pump-2"], 2, [MIXED._replace(samples=MIXED.samples[:2])]),
        ("METRIC_UNKNOWN", ["pump-2"], 2, [MIXED._replace(samples=MIXED.samples[2:4])]),
        ("KIND_MISMATCH", ["pump-2"], 1, [MIXED._replace(samples=MIXED.samples[4:])]),
        ("DEVICE_DISABLED", ["off"], 1, [Reading("off", 5, [("x", NUMBER, 2.0)])]),
    ]
    assert {letter.received_us for letter in request.dead_letters} == {NOW}
    assert {letter.principal for letter in request.dead_letters} == {"api_key:hub"}


async def test_of_a_replay_what_fails_again_is_one_letter(world: World) -> None:
    request = await taken(world, GOOD, MIXED, ABSENT, replay=REPLAY)
    assert request.replay == REPLAY
    (letter,) = request.dead_letters
    assert (letter.reason, letter.sample_count) == ("METRIC_REPEATED", 7)
    assert readings_of(letter) == [MIXED, ABSENT]


async def test_a_batch_of_all_or_nothing_leaves_one_letter_with_all_of_it(world: World) -> None:
    request = await taken(world, GOOD, ABSENT, all_or_nothing=True)
    (letter,) = request.dead_letters
    assert (letter.reason, letter.sample_count) == ("DEVICE_UNKNOWN", 3)
    assert readings_of(letter) == [GOOD, ABSENT]
    assert RefusedBatch.FromString(letter.payload).mode == ingest_pb2.MODE_ALL_OR_NOTHING


async def test_a_good_batch_leaves_none_unless_the_database_refuses_it(world: World) -> None:
    request = await taken(world, GOOD)
    assert list(request.dead_letters) == []
    (letter,) = request.refused_dead_letters()
    assert (letter.reason, letter.sample_count, readings_of(letter)) == ("VALUE_REFUSED", 1, [GOOD])


async def test_more_refusals_than_are_told_are_all_in_the_letter(world: World) -> None:
    gone = [ABSENT._replace(device_id=f"gone-{number}") for number in range(1_500)]
    (letter,) = (await taken(world, *gone)).dead_letters
    assert (letter.sample_count, len(letter.device_ids)) == (3_000, 1_500)
    assert readings_of(letter) == gone


async def test_a_time_that_no_clock_shows_is_kept_as_it_was_sent(world: World) -> None:
    never = Reading("pump-1", -(2**62) * 1_000_000 + 5, [("x", NUMBER, 1.0)])
    (letter,) = (await taken(world, never)).dead_letters
    assert (letter.reason, readings_of(letter)) == ("TIME_OUT_OF_WINDOW", [never])


def test_a_message_is_bounded_and_has_no_nul() -> None:
    content = RefusedContent((WHY[0], "a\0" + "b" * 5_000), 1, b"")
    message = dead_letters.of_content(ARRIVAL, content).message
    assert "\0" not in message
    assert len(message) < 1_100


def test_readings_that_break_every_rule_name_only_what_may_be_a_device() -> None:
    bad = ingest_pb2.Reading(device_id="a\0b")
    batch = ingest_pb2.Batch(readings=[bad, ingest_pb2.Reading(device_id="pump-1", numbers={"x": 1})])
    content = conversion.to_content(batch)
    assert isinstance(content, RefusedContent)
    letter = dead_letters.of_content(ARRIVAL, content)
    assert (letter.reason, list(letter.device_ids)) == ("INVALID_FIELD", ["pump-1"])
    assert RefusedBatch.FromString(letter.payload).readings == batch.readings


DEFINITIONS = [
    SeriesDefinition(device_id, metric, kind, "")
    for device_id in ("pump-1", "gone")
    for metric, kind in (
        ("d", Kind.DOUBLE),
        ("i", Kind.INT),
        ("b", Kind.BOOL),
        ("s", Kind.STRING),
        ("p", Kind.POINT),
    )
]
_FINITE = st.floats(-90, 90)
_VALUES: dict[Kind, st.SearchStrategy[Any]] = {
    Kind.DOUBLE: st.floats(allow_nan=False),
    Kind.INT: st.integers(-(2**63), 2**63 - 1),
    Kind.BOOL: st.booleans(),
    Kind.STRING: st.text(st.characters(exclude_categories=["Cs"]), max_size=4),
    Kind.POINT: st.tuples(_FINITE, _FINITE, st.one_of(st.none(), _FINITE)),
}
_TYPES: dict[Kind, Any] = {
    Kind.DOUBLE: np.float64,
    Kind.INT: np.int64,
    Kind.BOOL: np.bool_,
    Kind.STRING: np.object_,
    Kind.POINT: np.float64,
}
# Runs of an alias: times, of which those below 0 are refused, each with a value.
RUNS = st.lists(
    st.integers(0, len(DEFINITIONS) - 1).flatmap(
        lambda alias: st.tuples(
            st.just(alias),
            st.lists(st.tuples(st.integers(-3, 3), _VALUES[DEFINITIONS[alias].kind]), min_size=1, max_size=5),
        )
    ),
    min_size=1,
    max_size=8,
)


def table() -> SeriesTable:
    """Return a table that holds something against the series of one device."""
    made = SeriesTable()
    made.define(list(enumerate(DEFINITIONS)))
    for alias, definition in enumerate(DEFINITIONS):
        if definition.device_id == "gone":
            made.verdicts[alias] = ErrorReason.ERROR_REASON_DEVICE_UNKNOWN
            made._messages[alias] = "unknown"
    return made


def columns_of(runs: list[tuple[int, list[tuple[int, Any]]]]) -> SentColumns:
    values: dict[Kind, list[Any]] = {}
    for alias, samples in runs:
        values.setdefault(DEFINITIONS[alias].kind, []).extend(value for _, value in samples)
    codes, texts = coded(values.pop(Kind.STRING, []))
    columns = {
        kind: np.array([_cell(each) for each in of_kind], _TYPES[kind]) for kind, of_kind in values.items()
    }
    return SentColumns(
        np.array([alias for alias, _ in runs], np.uint32),
        np.array([len(samples) for _, samples in runs], np.int64),
        np.array([time for _, samples in runs for time, _ in samples], np.int64),
        {**columns, Kind.STRING: codes} if texts else columns,
        texts,
    )


def _cell(value: Any) -> Any:
    return (value[0], value[1], np.nan if value[2] is None else value[2]) if type(value) is tuple else value


def samples_of(letter: DeadLetter) -> list[tuple[Any, ...]]:
    """Return what a letter holds, read as a stream's batch is."""
    batch = RefusedBatch.FromString(letter.payload)
    definitions = dict(conversion.to_definitions(batch.series_defs))
    columns = conversion.to_columns(batch.columns)
    left = {kind: iter(values.tolist()) for kind, values in columns.values.items()}
    left[Kind.STRING] = iter([columns.texts[code] for code in left.get(Kind.STRING, ())])
    times = iter(columns.times.tolist())
    found = []
    for alias, length in zip(columns.aliases.tolist(), columns.run_lengths.tolist(), strict=True):
        definition = definitions[alias]
        for _ in range(length):
            value = next(left[definition.kind])
            found.append((definition, next(times), tuple(value) if type(value) is list else value))
    assert not list(times)
    assert letter.sample_count == len(found)
    assert set(letter.device_ids) == {definition.device_id for definition, _, _ in found}
    return found


@given(runs=RUNS, as_one=st.booleans())
def test_refused_columns_are_in_the_letters_each_once_in_their_order(
    runs: list[tuple[int, list[tuple[int, Any]]]], as_one: bool
) -> None:
    series = table()
    columns = columns_of(runs)
    sent_columns.check(columns, series)
    assessed = sent_columns.assess(
        columns, series, window=TimeWindow("w", 0, 10), all_or_nothing=False, refused_as_one=as_one
    )
    expected: Found = {}
    for alias, samples in runs:
        definition = DEFINITIONS[alias]
        for time, value in samples:
            reason = (
                "DEVICE_UNKNOWN"
                if definition.device_id == "gone"
                else "TIME_OUT_OF_WINDOW"
                if time < 0
                else "VALUE_INVALID"
                if _is_bad(value)
                else ""
            )
            if reason:
                told = next(iter(expected), reason) if as_one else reason
                expected.setdefault(told, []).append((definition, time, _read(value)))
    letters = dead_letters.of_columns(ARRIVAL, assessed.refused, series)
    # As text, in which NaN, an altitude not known, equals itself.
    assert repr({letter.reason: samples_of(letter) for letter in letters}) == repr(expected)


def _is_bad(value: Any) -> bool:
    return (type(value) is float and not np.isfinite(value)) or (type(value) is str and "\0" in value)


def _read(value: Any) -> Any:
    return tuple(map(float, _cell(value))) if type(value) is tuple else value


async def test_columns_of_all_or_nothing_leave_one_letter(world: World) -> None:
    series = table()
    columns = columns_of([(0, [(-1, 1.0), (1, 2.0)]), (5, [(1, 3.0)])])
    assessed = sent_columns.assess(columns, series, window=TimeWindow("w", 0, 10), all_or_nothing=True)
    (letter,) = dead_letters.of_columns(ARRIVAL, assessed.refused, series)
    assert (letter.reason, letter.sample_count) == ("TIME_OUT_OF_WINDOW", 3)


async def test_columns_whose_lengths_disagree_are_kept_as_they_are(world: World) -> None:
    columns = SentColumns(
        np.array([0, 0], np.uint32), np.array([0, 2]), np.array([5]), {Kind.INT: np.array([1, 2, 3])}
    )
    request = await world.taking(columns)
    (letter,) = request.dead_letters
    assert (letter.reason, letter.payload_format) == ("COLUMNS_INVALID", PayloadFormat.COLUMNS)
    kept = RefusedBatch.FromString(letter.payload)
    assert kept.columns == ingest_pb2.Columns(
        series=[0, 0], run_lengths=[0, 2], times=[5], int_values=[1, 2, 3]
    )
    assert [each.device_id for each in kept.series_defs] == ["pump-1"]


async def test_columns_are_kept_in_the_unit_in_which_they_were_sent(world: World) -> None:
    world.table.define([(1, SeriesDefinition("pump-1", "x", Kind.DOUBLE, "°F"))])
    columns = SentColumns(
        np.array([1], np.uint32), np.array([2]), np.array([5, NOW]), {Kind.DOUBLE: np.array([212.0, 50.0])}
    )
    request = await world.taking(columns)
    assert request.samples[0].values.tolist() == pytest.approx([10.0])
    (letter,) = request.dead_letters
    kept = RefusedBatch.FromString(letter.payload)
    assert list(kept.columns.double_values) == [212.0]
    assert [each.unit for each in kept.series_defs] == ["°F"]
    (whole,) = request.refused_dead_letters()
    assert list(RefusedBatch.FromString(whole.payload).columns.double_values) == [212.0, 50.0]
