"""Whether there is room: the rules, and who goes by them."""

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.storage_room import StorageRoom
from meshkit.errors import ResourceExhausted
from telemetry_store.maintenance.storage_room import disk, rest_after
from telemetry_store.storage_room import Measured, Room, room_of
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


def used(percent: float, *, what: str = "disk", reserved: int = 5) -> Measured:
    return Measured(what, int(percent * 1_000), 100_000, reserved * 1_000)


def states(*percents: float) -> list[bool]:
    """Whether new data are refused after each look."""
    seen: list[bool] = []
    for percent in percents:
        seen.append(room_of([used(percent)], before=bool(seen) and seen[-1]).refused)
    return seen


def test_it_refuses_when_less_is_free_than_reserved_and_takes_again_with_somewhat_more() -> None:
    assert states(94, 94.9, 95, 94.5, 94.1, 93.9, 94.5, 94.9, 96) == [
        False,
        False,
        True,
        True,
        True,
        False,
        False,
        False,
        True,
    ]


def test_a_database_is_full_when_it_has_its_size() -> None:
    assert not room_of([used(99.9, what="database", reserved=0)], before=False).refused
    assert room_of([used(100, what="database", reserved=0)], before=False).refused


def test_whatever_is_full_refuses_and_is_named() -> None:
    found = room_of([used(10), used(101, what="database", reserved=0)], before=False)
    error = found.error()
    assert (found.refused, found.measured.what) == (True, "database")
    assert error.reason == ErrorReason.ERROR_REASON_STORAGE_FULL
    assert error.metadata == {"limit_name": "storage_database", "limit": "100000", "used": "101000"}
    assert error.retry_after_s


@given(st.lists(st.integers(0, 120_000), min_size=1), st.integers(0, 50_000))
def test_it_never_takes_data_into_what_is_reserved_and_does_not_flicker(
    levels: Sequence[int], reserved: int
) -> None:
    before = False
    for level in levels:
        measured = Measured("disk", level, 100_000, reserved)
        after = room_of([measured], before=before).refused
        if measured.left <= 0:
            assert after
        if measured.left > 1_000:
            assert not after
        if 0 < measured.left <= 1_000:
            assert after == before
        before = after


def test_a_disk_keeps_a_part_free_unless_it_is_told_how_much(tmp_path: Path) -> None:
    found = os.statvfs(tmp_path)
    measured = disk(tmp_path, None)
    assert measured.size == found.f_blocks * found.f_frsize
    assert measured.reserved == min(max(measured.size // 20, 2**30), 20 * 2**30)
    assert disk(tmp_path, 7).reserved == 7


async def test_while_nobody_can_tell_what_was_known_last_holds() -> None:
    answers: list[Room | Exception | None] = [Room(True, used(99)), OSError("away"), None]
    asked = asyncio.Event()

    async def source() -> Room | None:
        answer = answers[0]
        if len(answers) > 1:
            answers.pop(0)
        else:
            asked.set()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with StorageRoom(source=source) as room:
        assert room.is_full
        assert isinstance(room.refusal(), ResourceExhausted)
        while len(answers) > 1:
            assert room.is_full
            await asyncio.sleep(0.01)
        await asked.wait()
        assert room.refusal() is None


def test_it_looks_again_soon_however_long_a_look_took() -> None:
    assert rest_after(0.001, failed=False) == 2
    assert rest_after(1, failed=False) == 20
    assert rest_after(30, failed=False) == 60
    assert rest_after(30, failed=True) == 2
