"""The limiter's rounds, with a source that answers when it is told to."""

import asyncio
from collections.abc import Sequence

from ingest_svc.ingest_policies import TenantLimits
from ingest_svc.limiter import Limiter, Sent
from telemetry_store.ingest_policies import SubjectKind, SubjectLimits
from telemetry_store.limits import CapacityAsk, CapacityGrant, TokenAsk, TokenGrant


class _Source:
    """Grants everything, each round once `let_go` is set."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.let_go = asyncio.Event()

    async def take_tokens(self, asks: Sequence[TokenAsk]) -> Sequence[TokenGrant]:
        self.asked.set()
        await self.let_go.wait()
        return [TokenGrant(ask.wanted, 0.0, ask.wanted) for ask in asks]

    async def hold(self, asks: Sequence[CapacityAsk]) -> Sequence[CapacityGrant]:
        raise AssertionError("nothing is held")


async def test_who_comes_while_a_round_is_under_way_has_its_bucket_in_the_next() -> None:
    limits = TenantLimits([SubjectLimits(SubjectKind.DEVICE, samples_per_second=1)])
    source = _Source()
    async with Limiter(limits_of=lambda _: limits, source=source, on_limited=lambda _: None) as limiter:

        def admit(device: str) -> asyncio.Task[object]:
            sent = Sent(tenant="demo", principal="", samples=1, size=1, devices={device: 1})
            return asyncio.create_task(limiter.admit(limits, sent))

        first = admit("pump-1")
        await source.asked.wait()
        second = admit("pump-2")
        # It stands in line before the first round ends.
        await asyncio.sleep(0)
        source.let_go.set()
        async with asyncio.timeout(10):
            await asyncio.gather(first, second)
