"""Recordings for tests of loads, and what is stored of them."""

from dataclasses import dataclass
from pathlib import Path

import asyncpg
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from meshkit.testing.mesh import Mesh
from telemetry_store.columns import MICROS_PER_DAY, Kind
from telemetry_store.tiers.reader import Span, read_spans

START = 1_583_793_000_000_000  # 2020-03-09T22:30
STEP = 100_000


@dataclass(frozen=True, slots=True)
class Column:
    """A metric's samples by time: int64[n] microseconds, float64[n]."""

    times: npt.NDArray[np.int64]
    values: npt.NDArray[np.float64]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Column)
            and self.times.tobytes() == other.times.tobytes()
            and self.values.tobytes() == other.values.tobytes()
        )

    __hash__ = None  # type: ignore[assignment] # Of arrays.


def write_parquet(path: Path, rows: int, *, seed: int = 0, first: int = 0) -> dict[str, Column]:
    """Write a recording of awkward numbers in two columns; return what it holds.

    Args:
        path: of the file.
        rows: how many, a tenth of a second apart.
        seed: of the numbers.
        first: place of the first row; 0 is in 2020.
    """
    chance = np.random.default_rng(seed)
    times = START + (first + np.arange(rows)) * STEP
    columns = {
        "pressure": chance.uniform(-1, 1, rows) * 10.0 ** chance.integers(-300, 300, rows),
        "flow": np.round(np.cumsum(chance.normal(size=rows)), 3),
    }
    pq.write_table(pa.table({"time": pa.array(times, pa.timestamp("us", tz="UTC")), **columns}), path)
    return {name: Column(times, values) for name, values in columns.items()}


def load_parquet(path: Path, device: str) -> list[str]:
    """Return the command that loads such a recording."""
    return ["load", str(path), "--device", device, "--device-type", "recorded-pump"]


async def stored(mesh: Mesh, device: str) -> dict[str, Column]:
    """Return what is stored of a device's doubles, in whatever tier."""
    connection = await asyncpg.connect(mesh.database_url("postgres"))
    try:
        async with connection.transaction(isolation="repeatable_read"):
            rows = await connection.fetch(
                "SELECT tenant_id, series_id, metric FROM telemetry.series "
                "WHERE device_id = $1 AND kind = $2",
                device,
                Kind.DOUBLE,
            )
            spans = [
                Span(row["tenant_id"], row["series_id"], START - MICROS_PER_DAY, START + 365 * MICROS_PER_DAY)
                for row in rows
            ]
            found = await read_spans(connection, Kind.DOUBLE, spans, archive=None)
    finally:
        await connection.close()
    return {
        row["metric"]: Column(
            found.samples.times[found.places == place], found.samples.values[found.places == place]
        )
        for place, row in enumerate(rows)
    }
