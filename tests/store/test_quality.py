"""The quality of samples, from the writer to whoever reads them."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import asyncpg
import numpy as np
import numpy.typing as npt
from hypothesis import given
from hypothesis import strategies as st

from meshkit import db
from meshkit.db import tenant_transaction
from meshkit.testing.database import TestDatabase
from telemetry_store import latest
from telemetry_store.columns import MICROS_PER_HOUR
from telemetry_store.detector_states import load_states, save_states
from telemetry_store.feed import read_commits, snapshot
from telemetry_store.history import HistoryQuestion, SeriesHistory, find_series, read_history
from telemetry_store.latest_columns import LatestColumns
from telemetry_store.merge import Runs
from telemetry_store.quality import NOT_JUDGED, PERFECT, Codes, constant, pack, score_of, unpack
from telemetry_store.saved_state import SavedState
from telemetry_store.series import Point, Value
from tests.store.telemetry import Sent, recorder

HOUR = (time.time_ns() // 1000 // MICROS_PER_HOUR - 2) * MICROS_PER_HOUR
VALUES: list[Value] = [1.5, 7, True, "on", Point(1.0, 2.0, None)]
STEPS = st.lists(
    st.tuples(*[st.integers(0, 20)] * 4, st.integers(0, 100), st.booleans()), min_size=1, max_size=9
)


def by_time(runs: Runs, received_us: npt.NDArray[np.int64]) -> Codes:
    """Judge nothing in the first hour, all alike in the second, and each on its own in the third."""
    hours = (runs.times - HOUR) // MICROS_PER_HOUR
    return np.select([hours <= 0, hours == 1], [NOT_JUDGED, PERFECT], runs.times % 97).astype(np.int32)


def code(time_us: int) -> int:
    hour = (time_us - HOUR) // MICROS_PER_HOUR
    return [NOT_JUDGED, PERFECT, time_us % 97][hour]


@asynccontextmanager
async def feed(database: TestDatabase) -> AsyncIterator[db.Connection]:
    pool = db.pool(database.url("twinmesh_twin_feed"), application="feed")
    async with pool as opened, snapshot(opened) as connection:
        yield connection


async def histories(pool: asyncpg.Pool, *, with_quality: bool) -> list[SeriesHistory]:
    async with tenant_transaction(pool, "demo", isolation="repeatable_read") as connection:
        page = await read_history(
            connection,
            await find_series(connection, tenant="demo", device_ids=["pump-1"], metrics=[]),
            HistoryQuestion(HOUR, HOUR + 3 * MICROS_PER_HOUR, with_quality=with_quality),
            position=None,
            limit=10_000,
            archive=None,
        )
    return list(page.histories)


@given(STEPS)
def test_codes_hold_what_was_packed(samples: list[tuple[int, int, int, int, int, bool]]) -> None:
    *parts, scores, anomalous = (list(column) for column in zip(*samples, strict=True))
    codes = pack(np.array(scores, np.int32), np.array(parts, np.int32), np.array(anomalous))
    quality = unpack(codes)
    assert quality.scores.tolist() == scores
    assert quality.parts.tolist() == [[5 * step for step in part] for part in parts]
    assert quality.anomalous.tolist() == anomalous
    assert [score_of(int(number)) for number in codes] == list(zip(scores, anomalous, strict=True))
    assert (codes >= 0).all()


def test_what_nobody_judged_has_no_score() -> None:
    quality = unpack(constant(NOT_JUDGED, 2))
    assert quality.scores.tolist() == [NOT_JUDGED] * 2
    assert quality.parts.tolist() == [[NOT_JUDGED] * 2] * 4
    assert quality.anomalous.tolist() == [False, False]
    assert score_of(NOT_JUDGED) == (None, False)


async def test_history_answers_the_quality_of_every_kind(database: TestDatabase, query: asyncpg.Pool) -> None:
    times = [HOUR + hour * MICROS_PER_HOUR + second for hour in range(3) for second in (0, 1, 2)]
    async with recorder(database, judge=by_time) as writer:
        await writer.commit(
            "demo",
            [Sent("pump-1", type(value).__name__, time_us, value) for value in VALUES for time_us in times],
        )
    found = await histories(query, with_quality=True)
    assert len(found) == len(VALUES)
    for history in found:
        assert history.quality is not None
        assert history.quality.tolist() == [code(time_us) for time_us in times]
    assert {history.quality is None for history in await histories(query, with_quality=False)} == {True}


async def test_rows_with_and_without_quality_are_one_history(
    database: TestDatabase, query: asyncpg.Pool
) -> None:
    late = HOUR + 2 * MICROS_PER_HOUR
    async with recorder(database) as before:
        await before.commit("demo", [Sent("pump-1", "m", late + second, 1.0) for second in (0, 2, 4)])
    async with recorder(database, judge=by_time) as after:
        await after.commit("demo", [Sent("pump-1", "m", late + second, 2.0) for second in (1, 2, 3)])
    (history,) = await histories(query, with_quality=True)
    assert history.quality is not None
    assert history.quality.tolist() == [
        *[NOT_JUDGED, code(late + 1), code(late + 2), code(late + 3), NOT_JUDGED]
    ]


async def test_the_latest_samples_carry_their_quality(database: TestDatabase) -> None:
    last = HOUR + 2 * MICROS_PER_HOUR + 5
    async with recorder(database, judge=by_time) as writer:
        await writer.commit("demo", [Sent("pump-1", "m", last - 1, 1.0), Sent("pump-1", "m", last, 2.0)])
        await writer.commit("demo", [Sent("pump-2", "m", HOUR, 1.0)])
    async with (
        db.pool(database.url("twinmesh_twin_feed"), application="feed") as pool,
        snapshot(pool) as connection,
    ):
        commits = (await read_commits(connection, {})).commits
        read = await latest.read_latest(connection, commits)
    expected = {(last, code(last)), (HOUR, NOT_JUDGED)}
    assert _qualities(read) == expected
    async with db.pool(database.url("twinmesh_maintenance"), application="maintenance") as pool:
        await latest.advance_checkpoint(pool)
    async with (
        db.pool(database.url("twinmesh_twin_feed"), application="feed") as pool,
        snapshot(pool) as connection,
    ):
        _, pieces = await latest.read_checkpoint(connection)
        kept = [columns async for piece in pieces for columns in piece]
    assert _qualities(kept) == expected


def _qualities(found: list[LatestColumns]) -> set[tuple[int, int]]:
    result = set()
    for columns in found:
        assert columns.samples.quality is not None
        result |= set(zip(columns.samples.times.tolist(), columns.samples.quality.tolist(), strict=True))
    return result


async def test_states_of_detectors_are_kept_by_tenant_and_the_newest_stays(database: TestDatabase) -> None:
    def state(tenant: str, subject: str, time_us: int, content: bytes) -> SavedState:
        return SavedState(tenant, "series", subject, time_us, content)

    pool = db.pool(database.url("twinmesh_ingest"), application="ingest")
    async with pool as opened, opened.acquire() as connection:
        await save_states(connection, [state("demo", "7", 2, b"second"), state("other", "7", 1, b"first")])
        await save_states(connection, [state("demo", "7", 1, b"first"), state("demo", "8", 1, b"")])
        assert await load_states(connection, "demo", "series", ["7", "8", "9"]) == {"7": b"second", "8": b""}
        assert await load_states(connection, "other", "series", ["7"]) == {"7": b"first"}
        assert await load_states(connection, "demo", "device", ["7"]) == {}
        await save_states(connection, [state("demo", "7", 3, b"third")])
        assert await load_states(connection, "demo", "series", ["7"]) == {"7": b"third"}
