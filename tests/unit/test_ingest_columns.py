"""Columns of a stream, held against the plainest model of the same rules."""

import hashlib
import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest_svc.columns import (
    MAX_REFUSALS,
    AssessedColumns,
    SentColumns,
    UnreadableStrings,
    assess,
    check,
    digest,
    require_known,
)
from ingest_svc.profile import DeviceProfile, MetricProfile
from ingest_svc.series_table import SeriesDefinition, SeriesTable, definition_id
from ingest_svc.window import TimeWindow
from meshkit.errors import FailedPrecondition, InvalidArgument
from telemetry_store.columns import Kind, coded
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

NOW = 1_700_000_000_000_000
WINDOW = TimeWindow("the live window", NOW - 1_000, NOW + 1_000)
TYPES: dict[Kind, Any] = {
    Kind.DOUBLE: np.float64,
    Kind.INT: np.int64,
    Kind.BOOL: np.bool_,
    Kind.POINT: np.float64,
}
NAN, INF = math.nan, math.inf
GOOD: dict[Kind, list[Any]] = {
    Kind.DOUBLE: [1.5, -0.0, 0.0, 5e-324, 1.7976931348623157e308],
    Kind.INT: [0, 2**63 - 1, -(2**63)],
    Kind.BOOL: [True, False],
    Kind.STRING: ["", "läuft 🚰", "x" * 4_096],
    Kind.POINT: [(90.0, -180.0, NAN), (-90.0, 180.0, 0.0), (0.0, 0.0, -1e300)],
}
BAD: dict[Kind, list[Any]] = {
    Kind.DOUBLE: [NAN, INF, -INF],
    Kind.INT: [],
    Kind.BOOL: [],
    Kind.STRING: ["a\0", "x" * 4_097, "\ud800"],
    Kind.POINT: [(90.1, 0.0, NAN), (NAN, 0.0, 0.0), (0.0, -180.5, 0.0), (0.0, NAN, NAN), (0.0, 0.0, INF)],
}
# Alias 10 * kind + n, n from 0 to 2: a good series, the same one again, one of an unknown device.
DEVICES = ["pump-1", "pump-1", "nobody"]
SERIES = {
    10 * kind + place: SeriesDefinition(device, kind.name.lower(), kind, "")
    for kind in Kind
    for place, device in enumerate(DEVICES)
}
PROFILES = {
    "pump-1": DeviceProfile(
        device_type_id="pump",
        enabled=True,
        metrics={kind.name.lower(): MetricProfile(kind, "") for kind in Kind},
    )
}


def resolved(definitions: dict[int, SeriesDefinition]) -> SeriesTable:
    """Return a table in which each good alias has the id 1,000 + alias."""
    table = SeriesTable()
    table.define(list(definitions.items()))
    table.outdate(version=0, now_us=NOW)
    aliases = table.unresolved(len(definitions))
    good = list(table.judge(aliases, PROFILES))
    table.settle(aliases, good, np.array(good, np.int32) + 1_000)
    return table


TABLE = resolved(SERIES)


@dataclass(frozen=True)
class Run:
    """One run as a model: its alias and its samples."""

    alias: int
    samples: tuple[tuple[int, Any], ...]

    @property
    def kind(self) -> Kind:
        return Kind(self.alias // 10)


def sent(runs: Sequence[Run]) -> SentColumns:
    values: dict[Kind, list[Any]] = {}
    for run in runs:
        values.setdefault(run.kind, []).extend(value for _, value in run.samples)
    codes, texts = coded(values.pop(Kind.STRING, []))
    columns = {kind: np.array(column, TYPES[kind]) for kind, column in values.items()}
    return SentColumns(
        aliases=np.array([run.alias for run in runs], np.uint32),
        run_lengths=np.array([len(run.samples) for run in runs], np.int64),
        times=np.array([time_us for run in runs for time_us, _ in run.samples], np.int64),
        values={**columns, Kind.STRING: codes} if texts else columns,
        texts=texts,
    )


@st.composite
def run(draw: st.DrawFn, *, good: bool = False) -> Run:
    kind = draw(st.sampled_from(Kind))
    alias = 10 * kind + draw(st.sampled_from([0, 1] if good else [0, 1, 2]))
    time_us = st.sampled_from([NOW - 1_000, NOW, NOW + 999])
    value = st.sampled_from(GOOD[kind])
    if not good:
        time_us |= st.sampled_from([NOW - 1_001, NOW + 1_000, -(2**63), 2**63 - 1])
        value |= st.sampled_from(BAD[kind] or GOOD[kind])
    samples = draw(st.lists(st.tuples(time_us, value), min_size=1, max_size=6))
    return Run(alias, tuple(samples))


RUNS = st.lists(run() | run(good=True), max_size=6)
GOOD_RUNS = st.lists(run(good=True), max_size=6)


def name(reason: int) -> str:
    return ErrorReason.Name(ErrorReason.ValueType(reason)).removeprefix("ERROR_REASON_")


def reason_of(run: Run, time_us: int, value: Any) -> str:
    if SERIES[run.alias].device_id == "nobody":
        return "DEVICE_UNKNOWN"
    if not NOW - 1_000 <= time_us < NOW + 1_000:
        return "TIME_OUT_OF_WINDOW"
    return "VALUE_INVALID" if any(value is bad for bad in BAD[run.kind]) else ""


def stretches(runs: Sequence[Run], *, all_or_nothing: bool) -> list[tuple[int, str, str, str, int]]:
    """Say what is refused: (place, device, metric, reason, samples) for each stretch of one run."""
    reasons = [[reason_of(run, *sample) for sample in run.samples] for run in runs]
    whole = all_or_nothing and any(reason for of_run in reasons for reason in of_run)
    told, place = [], 0
    for run, of_run in zip(runs, reasons, strict=True):
        for reason, same in groupby(of_run):
            count = len(list(same))
            if reason or whole:
                definition = SERIES[run.alias]
                told.append(
                    (place, definition.device_id, definition.metric, reason or "BATCH_REFUSED", count)
                )
            place += count
    return told


def refusals(assessed: AssessedColumns) -> list[tuple[int, str, str, str, int]]:
    assert all(refusal.message for refusal in assessed.refusals)
    return [
        (told.reading_index, told.device_id, told.metric, name(told.reason), told.sample_count)
        for told in assessed.refusals
    ]


def plain(value: Any) -> Any:
    """Return what tells values apart exactly, NaN being NaN."""
    if isinstance(value, tuple | list):
        return tuple(map(plain, value))
    return struct.pack("<d", value) if isinstance(value, float) else (type(value), value)


def stored(assessed: AssessedColumns) -> dict[Kind, list[tuple[int, int, Any]]]:
    found: dict[Kind, list[tuple[int, int, Any]]] = {}
    for columns in assessed.samples:
        assert columns.kind not in found
        rows = zip(columns.series.tolist(), columns.times.tolist(), map(plain, columns.tolist()), strict=True)
        found[columns.kind] = list(rows)
    return found


@given(RUNS, st.booleans())
@settings(max_examples=300)
def test_assessment_equals_the_plain_model(runs: list[Run], all_or_nothing: bool) -> None:
    columns = sent(runs)
    check(columns, TABLE)
    assessed = assess(columns, TABLE, window=WINDOW, all_or_nothing=all_or_nothing)
    told = stretches(runs, all_or_nothing=all_or_nothing)
    assert refusals(assessed) == told
    assert assessed.refused_samples == sum(count for *_, count in told)
    assert assessed.stored_samples + assessed.refused_samples == len(columns)
    expected: dict[Kind, list[tuple[int, int, Any]]] = {}
    if not (all_or_nothing and told):
        for one in runs:
            for time_us, value in one.samples:
                if not reason_of(one, time_us, value):
                    expected.setdefault(one.kind, []).append((1_000 + one.alias, time_us, plain(value)))
    assert stored(assessed) == expected


def test_the_first_hundred_refusals_are_told_and_all_counted() -> None:
    runs = [Run(12, ((NOW, 1.5), (NOW, 2.5)))] * 3_000
    assessed = assess(sent(runs), TABLE, window=WINDOW, all_or_nothing=False)
    assert refusals(assessed) == stretches(runs, all_or_nothing=False)[:MAX_REFUSALS]
    assert (assessed.stored_samples, assessed.refused_samples) == (0, 6_000)


def test_the_culprit_is_named_however_many_it_takes_along() -> None:
    good = Run(10, ((NOW, 1.5),))
    runs = [good] * 500 + [Run(10, ((NOW, 1.5), (NOW, NAN)))] + [good] * 500
    assessed = assess(sent(runs), TABLE, window=WINDOW, all_or_nothing=True)
    told = refusals(assessed)
    assert len(told) == MAX_REFUSALS
    assert told[:-1] == [(place, "pump-1", "double", "BATCH_REFUSED", 1) for place in range(99)]
    assert told[-1] == (501, "pump-1", "double", "VALUE_INVALID", 1)
    assert (assessed.stored_samples, assessed.refused_samples) == (0, 1_002)


def test_equal_neighbours_are_refused_run_by_run() -> None:
    runs = [Run(12, ((NOW, 1.5),)), Run(12, ((NOW, 1.5),))]
    assessed = assess(sent(runs), TABLE, window=WINDOW, all_or_nothing=False)
    assert [place for place, *_ in refusals(assessed)] == [0, 1]


ONE_OF_EACH = [Run(10 * kind, ((NOW, GOOD[kind][0]), (NOW, GOOD[kind][1]))) for kind in Kind]


def changed(**fields: Any) -> SentColumns:
    return replace(sent(ONE_OF_EACH), **fields)


def lengths(*values: int) -> Any:
    return np.array(values, np.int64)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (changed(run_lengths=lengths(2, 2, 2, 2)), "series has 5 runs, run_lengths 4"),
        (changed(aliases=np.array([10], np.uint32)), "series has 1 runs, run_lengths 5"),
        (changed(run_lengths=lengths(2, 0, 4, 2, 2)), "run 1 has no samples"),
        (changed(run_lengths=lengths(2, 2, 2, 2, 3)), "add up to 11 samples, times has 10"),
        (
            changed(run_lengths=lengths(*[2**32 - 1] * 5)),
            f"add up to {5 * (2**32 - 1)} samples, times has 10",
        ),
        (changed(times=np.arange(9)), "add up to 10 samples, times has 9"),
        (changed(run_lengths=lengths(1, 3, 2, 2, 2)), "kind DOUBLE have 1 samples, double_values has 2"),
        (changed(values={}), "kind DOUBLE have 2 samples, double_values has 0"),
        (
            changed(values={**sent(ONE_OF_EACH).values, Kind.POINT: np.zeros((3, 3))}),
            "kind POINT have 2 samples, point_values has 3",
        ),
        (changed(unreadable=UnreadableStrings("string_codes has 2", bytes(32))), "string_codes has 2"),
        (SentColumns(np.empty(0, np.uint32), lengths(), np.zeros(1, np.int64), {}), "0 samples, times has 1"),
        (
            SentColumns(
                np.empty(0, np.uint32), lengths(), np.empty(0, np.int64), {Kind.BOOL: np.ones(1, bool)}
            ),
            "kind BOOL have 0 samples, bool_values has 1",
        ),
    ],
)
def test_lengths_that_disagree(columns: SentColumns, message: str) -> None:
    check(sent(ONE_OF_EACH), TABLE)
    require_known(columns, TABLE)
    with pytest.raises(InvalidArgument) as refused:
        check(columns, TABLE)
    assert refused.value.reason == ErrorReason.ERROR_REASON_COLUMNS_INVALID
    assert message in refused.value.message
    assert len(digest(columns, TABLE, all_or_nothing=False)) == 32


@given(
    st.lists(st.sampled_from([*SERIES, 0, 9, 53]), max_size=5),
    st.lists(st.integers(0, 4) | st.just(2**32 - 1), max_size=5),
    st.integers(0, 12),
    st.dictionaries(st.sampled_from(Kind), st.integers(0, 6)),
)
def test_check_equals_the_plain_model(
    aliases: list[int], run_lengths: list[int], samples: int, values: dict[Kind, int]
) -> None:
    columns = SentColumns(
        np.array(aliases, np.uint32),
        np.array(run_lengths, np.int64),
        np.zeros(samples, np.int64),
        {kind: np.zeros((count, 3) if kind is Kind.POINT else count) for kind, count in values.items()},
    )
    if not set(aliases) <= set(SERIES):
        with pytest.raises(FailedPrecondition):
            require_known(columns, TABLE)
        return
    require_known(columns, TABLE)
    fits = len(aliases) == len(run_lengths) and all(run_lengths) and sum(run_lengths) == samples
    for kind in Kind:
        runs = zip(aliases, run_lengths, strict=False)
        fits &= sum(length for alias, length in runs if alias // 10 == kind) == values.get(kind, 0)
    if fits:
        check(columns, TABLE)
    else:
        with pytest.raises(InvalidArgument):
            check(columns, TABLE)


@pytest.mark.parametrize("alias", [0, 9, 53, 99_999, 2**32 - 1])
def test_an_alias_that_is_not_defined(alias: int) -> None:
    columns = changed(aliases=np.array([10, alias], np.uint32))
    with pytest.raises(FailedPrecondition) as refused:
        require_known(columns, TABLE)
    assert refused.value.reason == ErrorReason.ERROR_REASON_UNKNOWN_ALIAS
    assert refused.value.metadata == {"alias": str(alias)}


def content(runs: Sequence[Run]) -> Any:
    """Return what is sent, without aliases and without how runs were cut; values of each kind in order."""
    by_series = [
        (definition, [time_us for run in same for time_us, _ in run.samples])
        for definition, same in groupby(runs, key=lambda run: SERIES[run.alias])
    ]
    values = [(run.kind, plain(value)) for run in runs for _, value in run.samples]
    return by_series, sorted(values, key=lambda value: value[0])


def digest_of(runs: Sequence[Run], *, all_or_nothing: bool = False, table: SeriesTable = TABLE) -> bytes:
    return digest(sent(runs), table, all_or_nothing=all_or_nothing)


@given(RUNS, RUNS)
def test_equal_exactly_for_equal_content(one: list[Run], other: list[Run]) -> None:
    assert (digest_of(one) == digest_of(other)) == (content(one) == content(other))


@given(RUNS, st.data())
def test_any_change_of_a_sample_shows(runs: list[Run], data: st.DataObject) -> None:
    runs = [*runs, data.draw(run())]
    place = data.draw(st.integers(0, len(runs) - 1))
    other = data.draw(run())
    altered = [*runs[:place], other, *runs[place + 1 :]]
    assert (digest_of(runs) == digest_of(altered)) == (content(runs) == content(altered))


@given(GOOD_RUNS, st.data())
def test_neither_cuts_nor_aliases_matter(runs: list[Run], data: st.DataObject) -> None:
    recut: list[Run] = []
    for one in runs:
        at = data.draw(st.integers(0, len(one.samples)))
        # The series of a good alias has another one beside it.
        halves = (one.samples[:at], one.samples[at:])
        for samples in filter(None, halves):
            recut.append(Run(one.alias - one.alias % 10 + data.draw(st.integers(0, 1)), samples))
    assert digest_of(recut) == digest_of(runs)
    assert digest_of(runs, all_or_nothing=True) != digest_of(runs)


def test_profiles_do_not_matter() -> None:
    unresolved = SeriesTable()
    unresolved.define(list(SERIES.items()))
    assert digest_of(ONE_OF_EACH, table=unresolved) == digest_of(ONE_OF_EACH)


@pytest.mark.parametrize("other", [{"device_id": "other"}, {"metric": "other"}, {"unit": "other"}])
def test_each_part_of_a_definition_matters(other: dict[str, Any]) -> None:
    table = SeriesTable()
    table.define([(alias, definition._replace(**other)) for alias, definition in SERIES.items()])
    assert digest_of(ONE_OF_EACH, table=table) != digest_of(ONE_OF_EACH)


@pytest.mark.parametrize("form", [0x7FF8000000000000, 0x7FF8000000000001, 0xFFF8000000000000])
def test_how_an_absent_altitude_is_written_does_not_matter(form: int) -> None:
    columns = sent([Run(50, ((NOW, (1.0, 2.0, NAN)),))])
    columns.values[Kind.POINT][0, 2] = np.array([form], np.uint64).view(np.float64)[0]
    assert digest(columns, TABLE, all_or_nothing=False) == digest_of([Run(50, ((NOW, (1.0, 2.0, NAN)),))])


def test_the_canonical_form_stays() -> None:
    """A writer's retry may come after an upgrade, so this form must never change."""
    runs = [
        Run(10, ((NOW, 1.5),)),
        Run(11, ((NOW + 1, -0.0),)),
        Run(20, ((NOW, -7),)),
        Run(30, ((NOW, True),)),
        Run(40, ((NOW, "läuft"), (NOW + 1, ""))),
        Run(50, ((NOW, (1.0, 2.0, NAN)),)),
    ]
    ids = [definition_id(SERIES[10 * kind]) for kind in Kind]
    written = b"columns/1" + struct.pack("<?3Q", False, 5, 5, 7)
    written += struct.pack("<5Q5q", *ids, 2, 1, 1, 2, 1)
    written += struct.pack("<7q", NOW, NOW + 1, NOW, NOW, NOW, NOW + 1, NOW)
    written += struct.pack("<BQ2d", 1, 2, 1.5, -0.0)
    written += struct.pack("<BQq", 2, 1, -7)
    written += struct.pack("<BQ?", 3, 1, True)
    written += struct.pack("<BQ2q", 4, 2, 5, 0) + "läuft".encode()
    written += struct.pack("<BQ3d", 5, 1, 1.0, 2.0, NAN)
    assert digest_of(runs) == hashlib.sha256(written).digest()


def test_texts_that_are_no_samples_value_refuse_nothing() -> None:
    state = 10 * Kind.STRING
    columns = SentColumns(
        aliases=np.array([state], np.uint32),
        run_lengths=np.array([3], np.int64),
        times=np.array([NOW, NOW + 1, NOW + 2]),
        values={Kind.STRING: np.array([1, 2, 1], np.int32)},
        texts=["bad\0", "on", "off"],
    )
    assessed = assess(columns, TABLE, window=WINDOW, all_or_nothing=False)
    (samples,) = assessed.samples
    assert (assessed.refused_samples, samples.tolist()) == (0, ["on", "off", "on"])
    bad = replace(columns, values={Kind.STRING: np.array([1, 0, 2], np.int32)})
    assessed = assess(bad, TABLE, window=WINDOW, all_or_nothing=False)
    (samples,) = assessed.samples
    assert [(refusal.reading_index, name(refusal.reason)) for refusal in assessed.refusals] == [
        (1, "VALUE_INVALID")
    ]
    assert samples.tolist() == ["on", "off"]
