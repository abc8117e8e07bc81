"""Columns of a gateway stream: checked, assessed and digested in whole arrays."""

import hashlib
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from ingest_svc import outcome
from ingest_svc.outcome import Outcome, Refusal, Why
from ingest_svc.series_table import SeriesTable
from ingest_svc.window import TimeWindow
from meshkit.errors import FailedPrecondition, InvalidArgument
from telemetry_store.columns import Kind, KindColumns
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_REFUSALS = 100
MAX_STRING = 4096  # characters
_FORMAT = b"columns/1"
_KINDS = len(Kind) + 1
_OUT_OF_WINDOW = ErrorReason.ERROR_REASON_TIME_OUT_OF_WINDOW
_OUT_OF_RANGE = ErrorReason.ERROR_REASON_VALUE_OUT_OF_RANGE
_VALUE_INVALID = ErrorReason.ERROR_REASON_VALUE_INVALID
_INVALID_VALUES: dict[Kind, Why] = {
    Kind.DOUBLE: (_VALUE_INVALID, "the value is NaN or infinite, or too large in the metric's unit"),
    Kind.STRING: (
        _VALUE_INVALID,
        f"the value is longer than {MAX_STRING} characters, holds a NUL or is no Unicode text",
    ),
    Kind.POINT: (
        _VALUE_INVALID,
        "the value is no place: latitude is from -90 to 90, longitude from -180 to 180, altitude finite",
    ),
}

_Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class SentColumns:
    """Samples as a stream sends them, by runs; nothing says that the lengths agree.

    Attributes:
        aliases: uint32[r], of each run.
        run_lengths: int64[r], 0 to 2^32 - 1.
        times: int64[n], microseconds since 1970-01-01 UTC.
        values: by kind, those present, in the order of the kind's samples: float64[n],
            int64[n], bool[n], int32[n] of places in `texts`, or float64[n, 3] of latitude,
            longitude and altitude (NaN when absent, infinite when it was sent as NaN).
        texts: what the values of kind STRING are; some may be named by none, or be equal.
        unreadable: what is wrong with the strings, whose values are then left out; None: nothing.
    """

    aliases: npt.NDArray[np.uint32]
    run_lengths: npt.NDArray[np.int64]
    times: npt.NDArray[np.int64]
    values: Mapping[Kind, npt.NDArray[Any]]
    texts: Sequence[str] = ()
    unreadable: "UnreadableStrings | None" = None

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.times)


@dataclass(frozen=True, slots=True)
class UnreadableStrings:
    """Strings that are no content.

    Attributes:
        message: why.
        digest: 32 bytes over what was sent.
        written: the same as fields of a serialized Columns.
    """

    message: str
    digest: bytes
    written: bytes = b""


@dataclass(frozen=True, slots=True)
class RefusedColumns:
    """Samples that are refused, and why the first of them is."""

    why: Why
    columns: SentColumns


@dataclass(slots=True)
class AssessedColumns(Outcome):
    """What becomes of a batch of columns.

    `samples` is what to store, `refused` what is refused by reason, the first one first; of a batch
    of all or nothing it is one, and everything.
    """

    samples: list[KindColumns] = field(default_factory=list)
    refused: list[RefusedColumns] = field(default_factory=list)


def require_known(columns: SentColumns, table: SeriesTable) -> None:
    """Refuse columns that use an alias the stream has not defined.

    Raises:
        FailedPrecondition: UNKNOWN_ALIAS; better once the client has sent SeriesDefs again.
    """
    aliases = columns.aliases
    if not len(aliases):
        return
    unknown = aliases[aliases >= table.places]
    if not len(unknown):
        undefined = table.kinds[aliases] == 0
        if not undefined.any():
            return
        unknown = aliases[undefined]
    raise FailedPrecondition(
        f"alias {unknown[0]} is not defined on this stream; send SeriesDefs, and the batch again",
        reason=ErrorReason.ERROR_REASON_UNKNOWN_ALIAS,
        metadata={"alias": str(unknown[0])},
    )


def check(columns: SentColumns, table: SeriesTable) -> None:
    """Refuse columns whose lengths disagree; their aliases are known.

    Raises:
        InvalidArgument: COLUMNS_INVALID, naming the lengths.
    """
    runs, lengths = len(columns.aliases), columns.run_lengths
    if runs != len(lengths):
        raise _invalid(f"series has {runs} runs, run_lengths {len(lengths)}")
    if runs and lengths.min() < 1:
        raise _invalid(f"run {int(lengths.argmin())} has no samples; run_lengths are at least 1")
    samples = int(lengths.sum())
    if samples != len(columns.times):
        raise _invalid(f"run_lengths add up to {samples} samples, times has {len(columns.times)}")
    if columns.unreadable is not None:
        raise _invalid(columns.unreadable.message)
    # Exact, though the weights are doubles: no message holds 2^53 samples.
    of_kind = np.bincount(table.kinds[columns.aliases], weights=lengths, minlength=_KINDS)
    for kind in Kind:
        values = len(columns.values.get(kind, ()))
        if values != of_kind[kind]:
            raise _invalid(
                f"runs of kind {kind.name} have {int(of_kind[kind])} samples, "
                f"{kind.name.lower()}_values has {values}"
            )


def _invalid(message: str) -> InvalidArgument:
    return InvalidArgument(message, reason=ErrorReason.ERROR_REASON_COLUMNS_INVALID)


def assess(
    columns: SentColumns,
    table: SeriesTable,
    *,
    window: TimeWindow,
    all_or_nothing: bool,
    refused_as_one: bool = False,
) -> AssessedColumns:
    """Decide about every sample of a batch that passed `check`.

    Args:
        columns: as sent.
        table: the stream's series, all resolved.
        window: event times that are taken.
        all_or_nothing: one refusal refuses the batch.
        refused_as_one: `refused` is one for all reasons.
    """
    if not len(columns):
        return AssessedColumns()
    sent, columns = columns, _converted(columns, table)
    if _spotless(columns, table, window):
        return AssessedColumns(stored_samples=len(columns), samples=_accepted(columns, table, None))
    reasons = _reasons(columns, table, window)
    refused = reasons != 0
    starts = _stretch_starts(columns, reasons)
    apart = _refused(
        sent,
        table,
        window,
        reasons=reasons,
        starts=starts,
        everything=all_or_nothing,
        as_one=refused_as_one,
    )
    told = starts[refused[starts]][:MAX_REFUSALS]
    if all_or_nothing and refused.any():
        rest = starts[~refused[starts]][: MAX_REFUSALS - len(told)]
        reasons[~refused] = outcome.BATCH_REFUSED[0]
        refused[:] = True
        told = np.sort(np.concatenate((told, rest)))
    refused_samples = int(np.count_nonzero(refused))
    return AssessedColumns(
        refusals=_refusals(columns, table, window, reasons=reasons, starts=starts, told=told),
        stored_samples=len(columns) - refused_samples,
        refused_samples=refused_samples,
        samples=[] if refused.all() else _accepted(columns, table, ~refused),
        refused=apart,
    )


def _converted(columns: SentColumns, table: SeriesTable) -> SentColumns:
    """Return columns in their metrics' units."""
    values = columns.values.get(Kind.DOUBLE)
    if table.conversions is None or values is None:
        return columns
    doubles = table.kinds[columns.aliases] == Kind.DOUBLE
    scales, offsets = table.conversions[columns.aliases[doubles]].T
    if (scales == 1).all() and not offsets.any():
        return columns
    lengths = columns.run_lengths[doubles]
    with np.errstate(over="ignore", invalid="ignore"):  # What becomes infinite is refused.
        converted = values * np.repeat(scales, lengths) + np.repeat(offsets, lengths)
    return replace(columns, values={**columns.values, Kind.DOUBLE: converted})


def _out_of_range(columns: SentColumns, table: SeriesTable, kind: Kind) -> _Mask | None:
    """Return which values of a kind their metrics refuse, None when none is."""
    values = columns.values.get(kind)
    if table.bounds is None or values is None:
        return None
    of_kind = table.kinds[columns.aliases] == kind
    lengths = columns.run_lengths[of_kind]
    minima, maxima = (np.repeat(bound, lengths) for bound in table.bounds[columns.aliases[of_kind]].T)
    outside = (values < minima) | (values > maxima)
    return outside if outside.any() else None


def _spotless(columns: SentColumns, table: SeriesTable, window: TimeWindow) -> bool:
    """Say whether nothing is to be refused: a few passes, and almost always true."""
    return not (
        table.verdicts[columns.aliases].any()
        or columns.times.min() < window.start_us
        or columns.times.max() >= window.end_us
        or any(_bad(columns, kind) is not None for kind in columns.values)
        or any(_out_of_range(columns, table, kind) is not None for kind in _BOUNDED)
    )


def _bad(columns: SentColumns, kind: Kind) -> _Mask | None:
    """Return which values break the contract's rules, None when none does."""
    values = columns.values[kind]
    if not len(values):
        return None
    if kind is Kind.STRING:
        bad = _bad_texts(columns.texts)
        return None if bad is None or not bad[values].any() else bad[values]
    find = _FIND_BAD.get(kind)
    return None if find is None else find(values)


_BOUNDED = (Kind.DOUBLE, Kind.INT)


def _bad_doubles(values: npt.NDArray[Any]) -> _Mask | None:
    finite = np.isfinite(values)
    return None if finite.all() else ~finite


def _bad_texts(texts: Sequence[str]) -> _Mask | None:
    if _is_text("".join(texts)) and max(map(len, texts)) <= MAX_STRING:
        return None
    return np.array([len(text) > MAX_STRING or not _is_text(text) for text in texts], np.bool_)


def _is_text(value: str) -> bool:
    try:
        value.encode()
    except UnicodeEncodeError:  # A lone surrogate.
        return False
    return "\0" not in value


def _bad_points(values: npt.NDArray[Any]) -> _Mask | None:
    latitude, longitude, altitude = values.T
    # Written so that NaN, which no comparison holds for, is no place.
    good = (np.abs(latitude) <= 90) & (np.abs(longitude) <= 180) & ~np.isinf(altitude)
    return None if good.all() else ~good


_FIND_BAD: dict[Kind, Callable[[npt.NDArray[Any]], _Mask | None]] = {
    Kind.DOUBLE: _bad_doubles,
    Kind.POINT: _bad_points,
}


def _reasons(columns: SentColumns, table: SeriesTable, window: TimeWindow) -> npt.NDArray[np.int16]:
    """Return each sample's reason, 0 for none; of several the first of series, time and value."""
    reasons = np.repeat(table.verdicts[columns.aliases], columns.run_lengths)
    outside = (columns.times < window.start_us) | (columns.times >= window.end_us)
    reasons[outside & (reasons == 0)] = _OUT_OF_WINDOW
    kinds = _sample_kinds(columns, table)
    for kind in columns.values:
        for reason, bad in (
            (_VALUE_INVALID, _bad(columns, kind)),
            (_OUT_OF_RANGE, _out_of_range(columns, table, kind) if kind in _BOUNDED else None),
        ):
            if bad is not None:
                places = np.flatnonzero(kinds == kind)[bad]
                reasons[places[reasons[places] == 0]] = reason
    return reasons


def _sample_kinds(columns: SentColumns, table: SeriesTable) -> npt.NDArray[np.int8]:
    return np.repeat(table.kinds[columns.aliases], columns.run_lengths)


def _stretch_starts(columns: SentColumns, reasons: npt.NDArray[np.int16]) -> npt.NDArray[np.intp]:
    """Return where each stretch of samples of one run with one reason begins."""
    begins = np.empty(len(reasons), np.bool_)
    begins[0] = True
    begins[1:] = reasons[1:] != reasons[:-1]
    begins[np.cumsum(columns.run_lengths[:-1])] = True
    return np.flatnonzero(begins)


def _value_at(columns: SentColumns, table: SeriesTable, place: int, kind: Kind) -> float:
    """Return the number at a place of the batch."""
    before = np.count_nonzero(_sample_kinds(columns, table)[:place] == kind)
    return float(columns.values[kind][before])


def _refusals(
    columns: SentColumns,
    table: SeriesTable,
    window: TimeWindow,
    *,
    reasons: npt.NDArray[np.int16],
    starts: npt.NDArray[np.intp],
    told: npt.NDArray[np.intp],
) -> list[Refusal]:
    """Return the refusals of the stretches that begin at `told`."""
    ends = np.append(starts[1:], len(reasons))[np.searchsorted(starts, told)]
    runs = np.searchsorted(np.cumsum(columns.run_lengths), told, side="right")
    out_of_window = outcome.time_out_of_window(window)
    refusals: list[Refusal] = []
    for start, end, alias in zip(told.tolist(), ends.tolist(), columns.aliases[runs].tolist(), strict=True):
        definition = table.definition(alias)
        reason = reasons[start]
        if reason == _OUT_OF_WINDOW:
            why = out_of_window
        elif reason == _VALUE_INVALID:
            why = _INVALID_VALUES[definition.kind]
        elif reason == _OUT_OF_RANGE:
            value = _value_at(columns, table, start, definition.kind)
            why = outcome.value_out_of_range(*table.bounded(alias), value)
        elif reason == outcome.BATCH_REFUSED[0]:
            why = outcome.BATCH_REFUSED
        else:
            why = table.why(alias)
        refusals.append(Refusal(start, definition.device_id, definition.metric, *why, end - start))
    return refusals


def _refused(
    columns: SentColumns,
    table: SeriesTable,
    window: TimeWindow,
    *,
    reasons: npt.NDArray[np.int16],
    starts: npt.NDArray[np.intp],
    everything: bool,
    as_one: bool,
) -> list[RefusedColumns]:
    """Return what is refused, apart for each reason."""
    found, firsts = np.unique(reasons, return_index=True)
    firsts = np.sort(firsts[found != 0])
    if everything or as_one:
        firsts = firsts[:1]
    whys = _refusals(columns, table, window, reasons=reasons, starts=starts, told=firsts)
    if everything:
        return [RefusedColumns((refusal.reason, refusal.message), columns) for refusal in whys]
    return [
        RefusedColumns(
            (refusal.reason, refusal.message),
            _chosen(columns, table, reasons != 0 if as_one else reasons == refusal.reason),
        )
        for refusal in whys
    ]


def _chosen(columns: SentColumns, table: SeriesTable, chosen: _Mask) -> SentColumns:
    """Return some of the samples, in runs as they were."""
    starts = np.cumsum(columns.run_lengths) - columns.run_lengths
    lengths = np.add.reduceat(chosen, starts, dtype=np.int64)
    kinds = _sample_kinds(columns, table)
    return SentColumns(
        aliases=columns.aliases[lengths > 0],
        run_lengths=lengths[lengths > 0],
        times=columns.times[chosen],
        values={kind: values[chosen[kinds == kind]] for kind, values in columns.values.items()},
        texts=columns.texts,
    )


def _accepted(columns: SentColumns, table: SeriesTable, accepted: _Mask | None) -> list[KindColumns]:
    """Return the accepted samples by kind; None: all are."""
    series = np.repeat(table.series_ids[columns.aliases], columns.run_lengths)
    present = {kind: values for kind, values in columns.values.items() if len(values)}
    if len(present) == 1 and accepted is None:
        ((kind, values),) = present.items()
        return [KindColumns(kind, series, columns.times, values, texts=_texts(columns, kind))]
    kinds = _sample_kinds(columns, table)
    found: list[KindColumns] = []
    for kind, values in present.items():
        of_kind = kinds == kind
        if accepted is not None:
            values = values[accepted[of_kind]]  # noqa: PLW2901
            of_kind &= accepted
        if len(values):
            found.append(
                KindColumns(
                    kind, series[of_kind], columns.times[of_kind], values, texts=_texts(columns, kind)
                )
            )
    return found


def _texts(columns: SentColumns, kind: Kind) -> Sequence[str]:
    return columns.texts if kind is Kind.STRING else ()


def digest(columns: SentColumns, table: SeriesTable, *, all_or_nothing: bool) -> bytes:
    """Return 32 bytes that are equal exactly when the same content was sent.

    It is the SHA-256 over the columns with an id of its definition for each run and
    neighbouring runs of one definition joined, so it depends neither on aliases nor on
    how runs were cut. What `check` refuses has a digest too; only the aliases must be
    known. Its form must never change under the same name: the digest of a writer's
    batch must still match when a retry comes after an upgrade.
    """
    return _digest(columns, table.definition_ids[columns.aliases], all_or_nothing=all_or_nothing)


def digest_as_sent(columns: SentColumns, *, all_or_nothing: bool) -> bytes:
    """Return a digest likewise, of columns that nobody reads: aliases stand for themselves."""
    return _digest(columns, columns.aliases.astype(np.uint64), all_or_nothing=all_or_nothing)


def _digest(columns: SentColumns, ids: npt.NDArray[np.uint64], *, all_or_nothing: bool) -> bytes:
    lengths = columns.run_lengths
    if len(ids) == len(lengths):
        ids, lengths = _joined(ids, lengths)
    values = [(kind, columns.values[kind]) for kind in Kind if len(columns.values.get(kind, ()))]
    hashed = hashlib.sha256(_FORMAT)
    hashed.update(struct.pack("<?3Q", all_or_nothing, len(ids), len(lengths), len(columns.times)))
    hashed.update(_bytes(ids))
    hashed.update(_bytes(lengths))
    hashed.update(_bytes(columns.times))
    for kind, column in values:
        hashed.update(struct.pack("<BQ", kind, len(column)))
        for part in _digested(kind, column, columns.texts):
            hashed.update(part)
    if columns.unreadable is not None:
        hashed.update(columns.unreadable.digest)
    return hashed.digest()


def _joined(
    ids: npt.NDArray[np.uint64], lengths: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    differs = ids[1:] != ids[:-1]
    if differs.all():
        return ids, lengths
    starts = np.concatenate(([0], np.flatnonzero(differs) + 1))
    return ids[starts], np.add.reduceat(lengths, starts)


def _digested(kind: Kind, values: npt.NDArray[Any], texts: Sequence[str]) -> Iterable[memoryview | bytes]:
    if kind is Kind.STRING:
        # Whether a text was sent once or with each sample makes no difference.
        lengths = np.fromiter(map(len, texts), np.int64, count=len(texts))
        yield _bytes(lengths[values])  # characters
        yield "".join(np.array(texts, np.object_)[values].tolist()).encode(errors="surrogatepass")
    elif kind is Kind.POINT:
        # NaN has many forms; which one stands for an absent altitude must not matter.
        yield _bytes(np.where(np.isnan(values), np.nan, values))
    else:
        yield _bytes(values)


def _bytes(array: npt.NDArray[Any]) -> memoryview:
    """Return an array's bytes in little-endian order, without a copy where that is the machine's."""
    return np.ascontiguousarray(array, array.dtype.newbyteorder("<")).data
