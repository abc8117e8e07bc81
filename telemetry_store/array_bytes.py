"""Columns of many rows as bytes: the driver would make one Python object per row and sample.

telemetry.array_bytes gives an array of fixed-width elements in one of two forms (docs/adr/0016). Both begin
with 20 bytes of dimensions. Then come the elements, as they lie in memory, or big-endian and each preceded by
its length of four bytes: how many bytes there are tells which. No element may be null.
"""

from typing import Any

import numpy as np
import numpy.typing as npt


def end_to_end(column: str) -> str:
    """Return an SQL aggregate: the elements of a column of arrays, one row's after the other's."""
    return f"string_agg(substr(telemetry.array_bytes({column}), 21), '')"


def each_row(expression: str) -> str:
    """Return an SQL aggregate: an expression's value in each row, in one order in all of a statement."""
    return f"substr(telemetry.array_bytes(array_agg({expression})), 21)"


def elements(payload: bytes | None, count: int, stored: str) -> npt.NDArray[Any]:
    """Return what one of these aggregates gave.

    Args:
        payload: the aggregate's value; None: of no rows.
        count: how many elements there are.
        stored: their type as numpy calls it, without the order of its bytes.
    """
    payload = payload or b""
    if len(payload) == count * np.dtype(stored).itemsize:
        found: npt.NDArray[Any] = np.frombuffer(payload, f"<{stored}")
    else:
        found = np.frombuffer(payload, np.dtype([("length", ">i4"), ("value", f">{stored}")]))["value"]
    return found.astype(stored)
