"""Samples as columns: what callers give becomes arrays of the contract's types.

Times are microseconds since 1970-01-01 UTC, int64. Values of one kind are a column of
its own; all of these functions work on whole columns.
"""

import operator
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from twinmesh.type.v1 import value_pb2

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_STRING_CHARACTERS = 4096


class Kind(IntEnum):
    """Which kind of value a series holds; it must be the metric's own."""

    DOUBLE = value_pb2.VALUE_KIND_DOUBLE
    INT = value_pb2.VALUE_KIND_INT
    BOOL = value_pb2.VALUE_KIND_BOOL
    STRING = value_pb2.VALUE_KIND_STRING
    POINT = value_pb2.VALUE_KIND_POINT


RULES = {
    Kind.DOUBLE: "a finite number",
    Kind.INT: "an integer of at most 64 bits, with a sign",
    Kind.BOOL: "True or False",
    Kind.STRING: f"a str of at most {_STRING_CHARACTERS:,} characters, without NUL",
    Kind.POINT: "(latitude, longitude) or (latitude, longitude, altitude): -90 to 90, -180 to 180, finite",
}
"""What a value is, by its kind; the server refuses all else for good."""


def to_micros(time: datetime | int) -> int:
    """Return a time in microseconds since the epoch.

    Raises:
        TypeError: neither a datetime nor an integer.
        ValueError: a datetime without a time zone, or more than 64 bits.
    """
    if isinstance(time, datetime):
        if time.tzinfo is None:
            raise ValueError(f"{time.isoformat()} has no time zone; datetime.now(UTC) has one")
        return (time - _EPOCH) // _MICROSECOND
    try:
        micros = operator.index(time)
    except TypeError:
        raise TypeError(
            f"a time is a datetime with a time zone or an integer, microseconds since the epoch, not {time!r}"
        ) from None
    if not -(2**63) <= micros < 2**63:
        raise ValueError(f"{micros} is no time in microseconds; it has more than 64 bits")
    return micros


def times_column(times: ArrayLike) -> NDArray[np.int64]:
    """Return times as a column, int64 of shape (n,), microseconds.

    Args:
        times: integers, microseconds since the epoch, or datetime64.

    Raises:
        TypeError: they are neither.
        ValueError: not one dimension, or NaT among them.
    """
    column = np.asarray(times)
    if column.ndim != 1:
        raise ValueError(f"times have shape {column.shape}; one dimension is needed")
    if column.dtype.kind == "M":
        if np.isnat(column).any():
            raise ValueError("not a time (NaT) is among the times")
        return column.astype("datetime64[us]").astype(np.int64)
    return _integers(column, "times are integers, microseconds since the epoch, or datetime64")


def values_column(kind: Kind, values: ArrayLike) -> NDArray[Any]:
    """Return values as a column.

    Args:
        kind: what they are; not STRING, which `encoded_strings` is for.
        values: numbers, truth values, or points as rows of latitude, longitude and, if known,
            altitude.

    Returns:
        DOUBLE float64 (n,), INT int64 (n,), BOOL bool (n,), POINT float64 (n, 3) with NaN for an
        altitude that is not known.

    Raises:
        TypeError: another kind of values.
        ValueError: another shape, an integer above 64 bits, a number that is not finite, or a point
            that is no place.
    """
    column = np.asarray(values)
    if kind is Kind.POINT:
        return _points(column)
    if column.ndim != 1:
        raise ValueError(f"values have shape {column.shape}; one dimension is needed")
    if kind is Kind.INT:
        return _integers(column, "values of kind INT are integers")
    if kind is Kind.BOOL:
        if column.dtype.kind != "b" and column.size:
            raise TypeError(f"values of kind BOOL are truth values, not {column.dtype}")
        return column.astype(np.bool_, copy=False)
    floats = _floats(column, "values of kind DOUBLE are numbers")
    if not (finite := np.isfinite(floats)).all():
        place = int(finite.argmin())
        raise ValueError(f"value {place} is {floats[place]}; values of kind DOUBLE are finite")
    return floats


def _integers(column: NDArray[Any], rule: str) -> NDArray[np.int64]:
    if column.dtype.kind not in "biu" and column.size:
        raise TypeError(f"{rule}, not {column.dtype}")
    if column.dtype.kind == "u" and (column > np.iinfo(np.int64).max).any():
        raise ValueError(f"{rule} of at most 64 bits, with a sign")
    return column.astype(np.int64, copy=False)


def _floats(column: NDArray[Any], rule: str) -> NDArray[np.float64]:
    if column.dtype.kind not in "biuf" and column.size:
        raise TypeError(f"{rule}, not {column.dtype}")
    return column.astype(np.float64, copy=False)


def _points(column: NDArray[Any]) -> NDArray[np.float64]:
    if column.ndim != 2 or column.shape[1] not in {2, 3}:
        if not column.size:
            return np.empty((0, 3))
        raise ValueError(f"points have shape {column.shape}; (n, 2) or (n, 3) is needed")
    points = np.full((len(column), 3), np.nan)
    points[:, : column.shape[1]] = _floats(column, "points are numbers")
    latitude, longitude, altitude = points.T
    # NaN, for which no comparison holds, is no place.
    good = (np.abs(latitude) <= 90) & (np.abs(longitude) <= 180) & ~np.isinf(altitude)
    if not good.all():
        place = int(good.argmin())
        raise ValueError(
            f"point {place} is {tuple(points[place].tolist())}; latitude is from -90 to 90, longitude from "
            "-180 to 180, altitude finite"
        )
    return points


def encoded_strings(values: Iterable[str]) -> list[bytes]:
    """Return strings as UTF-8.

    Raises:
        TypeError: not strings.
        ValueError: more than 4,096 characters, NUL, or half of a surrogate pair.
    """
    texts = list(values)
    if isinstance(values, str) or not all(isinstance(text, str) for text in texts):
        raise TypeError("values of kind STRING are a sequence of str")
    if texts and max(map(len, texts)) > _STRING_CHARACTERS:
        raise ValueError(f"a string has more than {_STRING_CHARACTERS:,} characters")
    try:
        encoded = [text.encode() for text in texts]
    except UnicodeEncodeError:
        raise ValueError("a string has half of a surrogate pair in it; it is no Unicode text") from None
    if "\0" in "".join(texts):  # Much faster than one by one.
        raise ValueError("a string has NUL in it")
    return encoded
