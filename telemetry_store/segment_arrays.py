"""Rows of telemetry.segment, read as columns: SQL lays arrays end to end, and numpy takes it apart."""

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from telemetry_store.array_bytes import each_row, elements, end_to_end
from telemetry_store.columns import POINT_WIDTH, Kind
from telemetry_store.quality import NOT_JUDGED

VALUE_COLUMNS = {
    Kind.DOUBLE: "doubles",
    Kind.INT: "ints",
    Kind.BOOL: "bools",
    Kind.STRING: "strings",
    Kind.POINT: "points",
}

_ARRAYS = f"""
       count(*) AS segments,
       {each_row("order_no")} AS order_nos,
       {each_row("cardinality(times)")} AS lengths,
       {end_to_end("times")} AS times"""
_QUALITY = f""",
       {each_row("coalesce(cardinality(quality), 0)")} AS judged,
       {end_to_end("quality")} AS quality"""
# How many texts a row has, how many codes, and these.
_TEXTS = f""",
       string_agg(substr(array_send(strings), 21), '') AS values,
       {each_row("cardinality(strings)")} AS text_counts,
       {each_row("coalesce(cardinality(codes), 0)")} AS code_counts,
       {end_to_end("codes")} AS codes"""
_STORED = {Kind.DOUBLE: "f8", Kind.INT: "i8", Kind.BOOL: "?"}


def stored_columns(kind: Kind) -> str:
    """Return which columns of telemetry.segment `aggregates` reads, beside those of every kind."""
    return f"{VALUE_COLUMNS[kind]}, codes, quality"


def aggregates(kind: Kind, *, with_quality: bool) -> str:
    """Return the select list that lays segments of a kind end to end, for `SegmentArrays`."""
    values = _TEXTS if kind is Kind.STRING else f",\n       {end_to_end(VALUE_COLUMNS[kind])} AS values"
    return _ARRAYS + values + (_QUALITY if with_quality else "")


class SegmentArrays:
    """What one statement with `aggregates` found, at least one segment.

    Attributes:
        lengths: intp[r], samples of each segment.
        order_nos: int64[r].
        times: int64[n], one segment's after the other's.
        values: likewise, by kind as in tiers.codec.Samples.
        quality: int32[n], likewise; NOT_JUDGED throughout when it was not read.
    """

    def __init__(self, kind: Kind, row: Any, *, with_quality: bool) -> None:
        self.lengths = _counts(row, "lengths")
        self.order_nos = elements(row["order_nos"], row["segments"], "i8")
        count = int(self.lengths.sum())
        self.times = elements(row["times"], count, "i8")
        self.values = (
            _strings(row, self.lengths) if kind is Kind.STRING else _numbers(kind, row["values"], count)
        )
        self.quality = (
            _quality(row, self.lengths) if with_quality else np.full(len(self.times), NOT_JUDGED, np.int32)
        )


def no_values(kind: Kind) -> npt.NDArray[Any]:
    """Return the values of no samples."""
    return np.empty(0, np.object_) if kind is Kind.STRING else _numbers(kind, b"", 0)


def _counts(row: Any, name: str) -> npt.NDArray[np.intp]:
    return elements(row[name], row["segments"], "i4").astype(np.intp)


def _quality(row: Any, lengths: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return the quality of each sample of a row's segments, which hold none, one for all, or one each."""
    judged = _counts(row, "judged")
    # Without any the sum is null; what was not judged finds its mark at the end.
    codes = np.append(elements(row["quality"], int(judged.sum()), "i4"), np.int32(NOT_JUDGED))
    firsts = np.where(judged > 0, np.cumsum(judged) - judged, len(codes) - 1)
    places = np.repeat(firsts, lengths)
    each = np.repeat(judged == lengths, lengths)
    ends = np.cumsum(lengths)
    within = np.arange(len(places)) - np.repeat(ends - lengths, lengths)
    found: npt.NDArray[np.int32] = codes[places + np.where(each, within, 0)]
    return found


def _numbers(kind: Kind, payload: bytes, count: int) -> npt.NDArray[Any]:
    """Return the values of so many samples."""
    if kind is Kind.POINT:
        return elements(payload, count * POINT_WIDTH, "f8").reshape(-1, POINT_WIDTH)
    return elements(payload, count, _STORED[kind])


def _strings(row: Any, lengths: npt.NDArray[np.intp]) -> npt.NDArray[Any]:
    """Return the strings of segments: of each by its codes, or the one for all, or one for each sample."""
    text_counts, code_counts = _counts(row, "text_counts"), _counts(row, "code_counts")
    has_codes = np.repeat(code_counts > 0, lengths)
    codes = elements(row["codes"], int(code_counts.sum()), "i2")
    starts = np.cumsum(lengths) - lengths
    places = np.arange(len(has_codes)) - np.repeat(starts, lengths)
    places[np.repeat(text_counts == 1, lengths)] = 0
    places[has_codes] = codes - np.intp(1)
    places += np.repeat(np.cumsum(text_counts) - text_counts, lengths)
    return _texts(row["values"], int(text_counts.sum()))[places]


def _texts(payload: bytes, count: int) -> npt.NDArray[Any]:
    texts = np.empty(count, np.object_)
    place = 0
    for index in range(count):
        (length,) = struct.unpack_from(">i", payload, place)
        place += 4 + length
        texts[index] = payload[place - length : place].decode()
    return texts
