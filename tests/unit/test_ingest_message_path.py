"""What becomes of messages when the store refuses one of them."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace

import pytest

from ingest_svc.child_cache import ChildCache
from ingest_svc.device_message import DeviceMessage
from ingest_svc.message_intake import MessageIntake
from ingest_svc.message_path import MessagePath
from ingest_svc.profile_cache import ProfileCache
from ingest_svc.raw_trail import RawTrail
from ingest_svc.tenant_cache import TenantCache
from ingest_svc.window import LiveWindow
from meshkit.errors import InvalidArgument, Unavailable, dependency_unavailable
from meshkit.testing.clock import ManualClock
from telemetry_store.requests import DeadLetter, MessageIdentity, WriteRequest, WriteResult
from tests.unit.ingest_world import NOW, PUMP, Assets, ChunkChecks, SeriesIds, unlimited
from twinmesh.type.v1.error_reason_pb2 import ErrorReason


class _Tenants:
    async def fetch_tenants(self, device_ids: Sequence[str]) -> Mapping[str, str]:
        return dict.fromkeys(device_ids, "acme")


class _Writer:
    """Refuses requests that hold a bad value; keeps numbers and dead letters of the others."""

    def __init__(self) -> None:
        self.bad: dict[float, Exception] = {}
        self.away = False
        self.stored: list[int] = []
        self.letters: list[DeadLetter] = []

    def submit(self, request: WriteRequest) -> asyncio.Future[WriteResult]:
        answer: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        identity = request.identity
        assert isinstance(identity, MessageIdentity)
        values = {float(value) for columns in request.samples for value in columns.values}
        if self.away:
            answer.set_exception(dependency_unavailable("postgresql"))
        elif found := [self.bad[value] for value in values if value in self.bad]:
            answer.set_exception(found[0])
        else:
            self.stored += identity.sequences
            self.letters += request.dead_letters
            answer.set_result(WriteResult(b"", duplicate=False))
        return answer


def _refused() -> Exception:
    return InvalidArgument("refused", reason=ErrorReason.ERROR_REASON_VALUE_REFUSED)


@pytest.fixture
def writer() -> _Writer:
    return _Writer()


@pytest.fixture
def assets() -> Assets:
    return Assets()


@pytest.fixture
async def path(writer: _Writer, assets: Assets) -> AsyncIterator[MessagePath]:
    clock = ManualClock(NOW)
    async with (
        TenantCache(source=_Tenants(), clock=clock) as tenants,
        ProfileCache(source=assets, clock=clock) as profiles,
        ChildCache(source=assets, clock=clock) as children,
    ):
        yield MessagePath(
            tenants=tenants,
            profiles=profiles,
            intake=MessageIntake(
                profiles=profiles,
                children=children,
                series_finder=SeriesIds(),
                chunks=ChunkChecks(),
            ),
            limiter=unlimited(),
            writer=writer,
            raw=RawTrail(keeps=lambda _: False),
            live_window=lambda _: LiveWindow(late_us=1_000_000, future_us=1_000_000),
            clock=clock,
        )


def _messages(count: int) -> list[DeviceMessage]:
    return [
        DeviceMessage("pump-1", f'{{"x": {number}}}'.encode(), NOW, number) for number in range(1, count + 1)
    ]


@pytest.mark.parametrize("bad", [[1], [7], [20], [3, 4, 11]])
async def test_a_value_that_is_refused_costs_its_message_alone(
    path: MessagePath, writer: _Writer, bad: list[int]
) -> None:
    writer.bad = {number: _refused() for number in bad}
    await path.store(_messages(20), stream="s")
    assert sorted(writer.stored) == list(range(1, 21))  # The bad ones as dead letters.
    assert [(letter.reason, letter.payload) for letter in writer.letters] == [
        ("VALUE_REFUSED", f'{{"x": {number}}}'.encode()) for number in bad
    ]


async def test_a_defect_costs_its_message_alone(path: MessagePath, writer: _Writer) -> None:
    writer.bad = {5: RuntimeError("a defect")}
    await path.store(_messages(8), stream="s")
    assert sorted(writer.stored) == list(range(1, 9))
    assert [(letter.reason, letter.payload) for letter in writer.letters] == [("INTERNAL", b'{"x": 5}')]


async def test_while_the_database_is_away_nothing_is_given_up(path: MessagePath, writer: _Writer) -> None:
    writer.away = True
    with pytest.raises(Unavailable):
        await path.store(_messages(4), stream="s")
    assert writer.stored == []


async def test_what_waited_since_before_the_device_was_made_is_of_a_former_one(
    path: MessagePath, writer: _Writer, assets: Assets
) -> None:
    assets.devices["pump-1"] = replace(PUMP, create_us=NOW + 1_000_001)
    assets.devices["pump-2"] = replace(PUMP, create_us=NOW + 1_000_000)
    former = DeviceMessage("pump-1", b'{"x": 1}', NOW, 1)
    # As far as clocks may differ.
    present = DeviceMessage("pump-2", b'{"x": 2}', NOW, 2)
    await path.store([former, present], stream="s")
    assert (writer.stored, writer.letters) == ([2], [])


async def test_a_dead_letter_is_bounded_and_quotes_what_the_device_wrote(
    path: MessagePath, writer: _Writer
) -> None:
    keys = ", ".join(f'"{name}": 1' for name in ["a\\u0000b", "y" * 5_000, *(f"k{n}" for n in range(20))])
    await path.store([DeviceMessage("pump-1", f'{{"x": 1, {keys}}}'.encode(), NOW, 1)], stream="s")
    (letter,) = writer.letters
    assert letter.reason == "METRIC_UNKNOWN"
    assert "\0" not in letter.message
    assert r"'a\x00b'" in letter.message
    assert letter.message.endswith("and 17 more")
    assert len(letter.message) < 1_500
