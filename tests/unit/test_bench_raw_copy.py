import struct

from bench import raw_copy
from bench.gateway_batches import SeriesLoad
from telemetry_store.copy import COLUMNS

_HEAD = 19


def _rows(stream: bytes) -> list[list[bytes | None]]:
    """Read PostgreSQL's binary COPY format."""
    rows, at = [], _HEAD
    while (columns := struct.unpack_from(">h", stream, at)[0]) != -1:
        at += 2
        row: list[bytes | None] = []
        for _ in range(columns):
            (size,) = struct.unpack_from(">i", stream, at)
            at += 4
            row.append(None if size < 0 else stream[at : at + size])
            at += max(size, 0)
        rows.append(row)
    assert at + 2 == len(stream)
    return rows


def test_groups_hold_the_batches_of_all_streams_in_turn_merged_by_series() -> None:
    loads = [SeriesLoad(series=3, run_length=2, runs_per_batch=3, start_us=1_000_000) for _ in range(2)]
    streams = raw_copy.groups(loads, batches_per_group=4, count=2)
    for number, stream in enumerate(streams):
        rows = [dict(zip(COLUMNS, row, strict=True)) for row in _rows(stream)]
        assert [int.from_bytes(row["series_id"] or b"") for row in rows] == [1, 2, 3, 4, 5, 6]
        # Two batches of each stream, two samples each: four milliseconds a group.
        starts = {int.from_bytes(row["start_time"] or b"") for row in rows}
        ends = {int.from_bytes(row["end_time"] or b"") for row in rows}
        first = 1_000_000 + number * 4_000
        assert (starts, ends) == ({first}, {first + 3_000})
