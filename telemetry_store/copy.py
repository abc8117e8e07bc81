"""Rows of telemetry.segment in PostgreSQL's binary COPY format: pure numpy, no I/O.

The rows are built before the commit's numbers are known and stamped with them later,
so that one group can be prepared while another commits.

Format: https://www.postgresql.org/docs/18/sql-copy.html (binary), and array_send in
src/backend/utils/adt/arrayfuncs.c for arrays: dimensions, has-nulls flag, element type,
length, lower bound, then each element after its size; all big-endian.
"""

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry_store.columns import POINT_WIDTH, Kind
from telemetry_store.merge import Index, Runs
from telemetry_store.quality import is_constant

COLUMNS = (
    "tenant_id",
    "series_id",
    "start_time",
    "end_time",
    "times",
    "doubles",
    "ints",
    "bools",
    "strings",
    "points",
    "codes",
    "quality",
    "instance",
    "commit_no",
    "order_no",
)
_SIGNATURE = b"PGCOPY\n\xff\r\n\0" + struct.pack(">ii", 0, 0)
_TRAILER = struct.pack(">h", -1)
_NULL = struct.pack(">i", -1)
_INT8_OID = 20
_INT2_OID = 21
_INT4_OID = 23
_TEXT_OID = 25
_ELEMENTS = {  # oid, size, how numpy writes it
    Kind.DOUBLE: (701, 8, ">f8"),
    Kind.INT: (_INT8_OID, 8, ">i8"),
    Kind.BOOL: (16, 1, "?"),
    Kind.POINT: (701, 8, ">f8"),
}
_VALUE_COLUMNS = (Kind.DOUBLE, Kind.INT, Kind.BOOL, Kind.STRING, Kind.POINT)  # in COLUMNS' order
_NUMBERS = struct.Struct(">iiiqiq")  # instance, commit_no and order_no, each after its size
_CHUNK_BYTES = 1 << 20
_MOST_CODES = 2**15 - 1

Rows = npt.NDArray[np.void]


@dataclass(frozen=True, slots=True)
class CopyPayload:
    """Rows without their commit's numbers.

    Attributes:
        fixed: rows of equal length per array, with a field `numbers` to be filled.
        texts: rows of strings up to their numbers, which come last.
    """

    fixed: tuple[Rows, ...]
    texts: tuple[bytes, ...]

    def stamped(self, *, instance: int, commit_no: int, order_no: int) -> Iterator[memoryview]:
        """Yield the whole COPY stream in chunks, with the commit's numbers in every row."""
        numbers = _NUMBERS.pack(4, instance, 8, commit_no, 8, order_no)
        yield memoryview(_SIGNATURE)
        for rows in self.fixed:
            rows["numbers"] = np.void(numbers)
            view = rows.view(np.uint8).data
            for start in range(0, len(view), _CHUNK_BYTES):
                yield view[start : start + _CHUNK_BYTES]
        if self.texts:
            yield memoryview(numbers.join([*self.texts, b""]))
        yield memoryview(_TRAILER)


def encode(merged: Iterable[tuple[Runs, Sequence[str]]]) -> CopyPayload:
    """Return the rows of merged runs.

    Args:
        merged: runs of each kind, with the tenant of each part that was merged.

    Raises:
        UnicodeEncodeError: a string has no UTF-8 form (a lone surrogate).
    """
    fixed: list[Rows] = []
    texts: list[bytes] = []
    for runs, part_tenants in merged:
        names = sorted(set(part_tenants))
        tenants = np.array([name.encode() for name in names])
        place = {name: number for number, name in enumerate(names)}
        run_tenants = np.array([place[name] for name in part_tenants])[runs.origins]
        if runs.kind is Kind.STRING:
            texts.extend(_text_rows(runs, tenants[run_tenants].tolist()))
        else:
            sizes = np.array([len(name) for name in tenants.tolist()])[run_tenants]
            judged = _judged(runs)
            for group in _groups_of_equal_size(sizes, runs.lengths, judged):
                first = group[0]
                template = _template(
                    runs.kind, int(sizes[first]), int(runs.lengths[first]), int(judged[first])
                )
                fixed.append(_fixed_rows(runs, group, tenants[run_tenants[group]], template))
    return CopyPayload(tuple(fixed), tuple(texts))


def _judged(runs: Runs) -> Index:
    """Return how many elements the quality of each run takes: 0 (none), 1 (all alike) or its length."""
    if runs.quality is None:
        return np.zeros(len(runs.starts), np.intp)
    if is_constant(runs.quality):
        return np.ones(len(runs.starts), np.intp)
    differs = np.empty(len(runs.quality), np.bool_)
    differs[1:] = runs.quality[1:] != runs.quality[:-1]
    differs[runs.starts] = False
    return np.where(np.logical_or.reduceat(differs, runs.starts), runs.lengths, 1)


def _groups_of_equal_size(tenant_sizes: Index, lengths: Index, judged: Index) -> Iterator[Index]:
    """Yield the indices of runs whose rows are of one size, ascending."""
    keys = (lengths * 2 + (judged > 1)) * (int(tenant_sizes.max()) + 1) + tenant_sizes
    if (keys == keys[0]).all():
        yield np.arange(len(keys))
        return
    order = np.argsort(keys, kind="stable")
    yield from np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)


def _fixed_rows(runs: Runs, group: Index, tenants: npt.NDArray[np.bytes_], template: Rows) -> Rows:
    length = int(runs.lengths[group[0]])
    starts = runs.starts[group]
    rows = np.repeat(template, len(group))
    rows["tenant"] = tenants
    rows["series"] = runs.series[group]
    rows["start"] = runs.times[starts]
    rows["end"] = runs.times[starts + (length - 1)]
    if int(starts[-1] - starts[0]) == (len(starts) - 1) * length:
        samples: Index | slice = slice(int(starts[0]), int(starts[-1]) + length)
    else:
        samples = (starts[:, np.newaxis] + np.arange(length)).ravel()
    rows["times"]["element"] = runs.times[samples].reshape(len(group), length)
    rows["values"]["element"] = runs.values[samples].reshape(len(group), -1)
    if runs.quality is not None:
        elements = rows["quality"]["element"]
        elements[:] = (
            runs.quality[starts, np.newaxis]
            if elements.shape[1] == 1
            else runs.quality[samples].reshape(len(group), -1)
        )
    return rows


@lru_cache(maxsize=1024)
def _template(kind: Kind, tenant_size: int, length: int, judged: int) -> Rows:
    """Return one row with everything that is equal in all rows of its size."""
    oid, size, form = _ELEMENTS[kind]
    elements = length * POINT_WIDTH if kind is Kind.POINT else length
    times = np.dtype([("size", ">i4"), ("element", ">i8")])
    values = np.dtype([("size", ">i4"), ("element", form)])
    quality = np.dtype([("size", ">i4"), ("element", ">i4")])
    before, after = _nulls_around(kind)
    after += _NULL  # No codes, which are of strings.
    quality_head = _array_head(_INT4_OID, judged, judged * quality.itemsize) if judged else _NULL
    row = np.zeros(
        1,
        dtype=[
            ("columns", ">i2"),
            ("tenant_size", ">i4"),
            ("tenant", f"S{tenant_size}"),
            ("series_size", ">i4"),
            ("series", ">i4"),
            ("start_size", ">i4"),
            ("start", ">i8"),
            ("end_size", ">i4"),
            ("end", ">i8"),
            ("times_head", "V24"),
            ("times", times, (length,)),
            ("nulls_before", f"V{len(before)}"),
            ("values_head", "V24"),
            ("values", values, (elements,)),
            ("nulls_after", f"V{len(after)}"),
            ("quality_head", f"V{len(quality_head)}"),
            ("quality", quality, (judged,)),
            ("numbers", f"V{_NUMBERS.size}"),
        ],
    )
    row["columns"] = len(COLUMNS)
    row["tenant_size"] = tenant_size
    row["series_size"] = 4
    row["start_size"] = row["end_size"] = 8
    row["times_head"] = np.void(_array_head(_INT8_OID, length, length * times.itemsize))
    row["times"]["size"] = 8
    row["nulls_before"] = np.void(before)
    row["values_head"] = np.void(_array_head(oid, elements, elements * values.itemsize))
    row["values"]["size"] = size
    row["nulls_after"] = np.void(after)
    row["quality_head"] = np.void(quality_head)
    row["quality"]["size"] = 4
    return row


def _array_head(oid: int, elements: int, body_bytes: int) -> bytes:
    return struct.pack(">iiiiii", 20 + body_bytes, 1, 0, oid, elements, 1)


def _nulls_around(kind: Kind) -> tuple[bytes, bytes]:
    place = _VALUE_COLUMNS.index(kind)
    return _NULL * place, _NULL * (len(_VALUE_COLUMNS) - place - 1)


def _text_rows(runs: Runs, tenants: Sequence[bytes]) -> Iterator[bytes]:
    """Yield rows of strings without their numbers; they have no common size, so run by run."""
    before, after = _nulls_around(Kind.STRING)
    times = _elements(runs.times, ">i8")
    coding = _coded(runs)
    texts = {
        place: len(text).to_bytes(4) + text
        for place in np.unique(coding.texts).tolist()
        for text in (runs.texts[place].encode(),)
    }
    text_ends, code_ends = np.cumsum(coding.text_counts).tolist(), np.cumsum(coding.code_counts).tolist()
    places, codes = coding.texts.tolist(), _elements(coding.codes, ">i2")
    text_start = code_start = 0
    for series, tenant, start, length, judged, text_end, code_end in zip(
        runs.series.tolist(),
        tenants,
        runs.starts.tolist(),
        runs.lengths.tolist(),
        _judged(runs).tolist(),
        text_ends,
        code_ends,
        strict=True,
    ):
        end = start + length
        body = b"".join([texts[place] for place in places[text_start:text_end]])
        yield b"".join(
            [
                struct.pack(">hi", len(COLUMNS), len(tenant)),
                tenant,
                struct.pack(">ii", 4, series),
                struct.pack(">iqiq", 8, int(runs.times[start]), 8, int(runs.times[end - 1])),
                _array(_INT8_OID, times[start:end]),
                before,
                _array_head(_TEXT_OID, text_end - text_start, len(body)),
                body,
                after,
                _array(_INT2_OID, codes[code_start:code_end]) if code_end > code_start else _NULL,
                _NULL
                if runs.quality is None
                else _array(_INT4_OID, _elements(runs.quality[start : start + judged], ">i4")),
            ]
        )
        text_start, code_start = text_end, code_end


@dataclass(frozen=True, slots=True)
class _Coding:
    """Texts and codes of each run's row, one run's after the other's.

    Attributes:
        texts: places in the runs' texts.
        text_counts: intp[r], how many each row has.
        codes: int16, each a place in its row's texts, from 1 as SQL counts.
        code_counts: intp[r]; 0: the row has one text for all of its samples, or one for each.
    """

    texts: Index
    text_counts: Index
    codes: npt.NDArray[np.int16]
    code_counts: Index


def _coded(runs: Runs) -> _Coding:
    """Return what rows of strings hold: few texts once each, many as they are."""
    of_samples = np.repeat(np.arange(len(runs.starts)), runs.lengths)
    pairs, places = np.unique(of_samples * len(runs.texts) + runs.values, return_inverse=True)
    distinct = np.bincount(pairs // len(runs.texts), minlength=len(runs.starts))
    first = np.cumsum(distinct) - distinct
    plain = (distinct == runs.lengths) | (distinct > _MOST_CODES)
    has_codes = ~plain & (distinct > 1)
    text_counts = np.where(plain, runs.lengths, distinct)
    # Texts of each row: those of its samples in a plain one, otherwise its distinct ones.
    texts = np.empty(int(text_counts.sum()), np.intp)
    in_plain = np.repeat(plain, text_counts)
    texts[in_plain] = runs.values[plain[of_samples]]
    texts[~in_plain] = (pairs % len(runs.texts))[~np.repeat(plain, distinct)]
    codes = places - first[of_samples] + 1
    return _Coding(
        texts,
        text_counts,
        codes[has_codes[of_samples]].astype(np.int16),
        np.where(has_codes, runs.lengths, 0),
    )


def _elements(values: npt.NDArray[Any], form: str) -> npt.NDArray[np.void]:
    """Return values as elements of an array, each after its size."""
    elements = np.empty(len(values), dtype=[("size", ">i4"), ("element", form)])
    elements["size"] = elements.dtype["element"].itemsize
    elements["element"] = values
    return elements


def _array(oid: int, elements: npt.NDArray[np.void]) -> bytes:
    return _array_head(oid, len(elements), elements.nbytes) + elements.tobytes()
