"""WatchTwins over real gRPC, PostgreSQL and NATS; what Envoy adds is tests/mesh/gateway's."""

import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import grpc
import pytest

from meshkit.revocations import RevocationKind
from meshkit.testing import identities
from meshkit.testing.calls import failure
from telemetry_store.commit_numbers import Coverage
from tests.rpc.twin.twin_app import Neighbours, TwinApp, refusal
from tests.rpc.twin.watcher import Watcher
from tests.store.telemetry import Recorder, Sent
from twin_svc.tokens import ResumePoint, encode
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc

NOW = int(time.time()) * 1_000_000


def watch(twins: TwinApp, **request: Any) -> Watcher:
    return Watcher(twins.stub.WatchTwins(contract.WatchTwinsRequest(**request), metadata=twins.metadata))


def pressure(device_id: str, value: float, *, after_us: int = 0) -> Sent:
    return Sent(device_id, "pressure", NOW + after_us, value)


async def test_a_snapshot_and_then_changes(neighbours: Neighbours, writer: Recorder, twins: TwinApp) -> None:
    await writer.commit(neighbours.tenant, [pressure("pump-1", 1.0)])
    await twins.twin_showing("pump-1", "pressure", 1.0)

    watcher = await watch(twins).begun()
    assert watcher.values() == {"pump-1": {"pressure": 1.0}, "pump-2": {}}

    await writer.commit(neighbours.tenant, [pressure("pump-2", 2.0)])
    await watcher.until_shown("pump-2", "pressure", 2.0)
    await watcher.until(lambda: watcher.heard[-1] == "bookmark")
    assert watcher.heard == ["snapshot", "snapshot_end", "change", "bookmark"]


async def test_devices_enter_and_leave(neighbours: Neighbours, writer: Recorder, twins: TwinApp) -> None:
    watcher = await watch(twins, ids=["pump-1", "pump-9"]).begun()
    assert watcher.values() == {"pump-1": {}}
    await writer.commit(neighbours.tenant, [pressure("pump-9", 9.0)])

    neighbours.has("pump-1", "pump-9")
    await neighbours.announce("pump-9")
    await watcher.until(lambda: "pump-9" in watcher.twins)
    await watcher.until_shown("pump-9", "pressure", 9.0)

    neighbours.has("pump-9")
    await neighbours.announce("pump-1")
    await watcher.until(lambda: "pump-1" not in watcher.twins)
    assert watcher.heard[-1] == "leave"


async def test_a_change_of_many_values_is_told_as_the_last(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    watcher = await watch(twins, ids=["pump-1"], interval={"seconds": 60}).begun()
    await writer.commit(neighbours.tenant, [pressure("pump-1", 0.0)])
    await watcher.until_shown("pump-1", "pressure", 0.0)
    for number in range(1, 50):
        await writer.commit(neighbours.tenant, [pressure("pump-1", float(number), after_us=number)])
    # Nothing was told for a minute; whoever resumes has the last value at once.
    resumed = watch(twins, ids=["pump-1"], resume_token=watcher.token)
    await resumed.until_shown("pump-1", "pressure", 49.0)


async def test_a_watch_goes_on_at_another_process(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    await writer.commit(neighbours.tenant, [pressure("pump-1", 1.0), pressure("pump-2", 1.0)])
    await twins.twin_showing("pump-1", "pressure", 1.0)
    watcher = await watch(twins).begun()
    async with neighbours.twin_svc() as other:
        await other.ready()
        await writer.commit(neighbours.tenant, [pressure("pump-1", 2.0, after_us=1)])
        resumed = await watch(other, resume_token=watcher.token).begun()
        await resumed.until_shown("pump-1", "pressure", 2.0)
        # Named, since the caller is to keep it, and told before.
        assert resumed.values()["pump-2"] == {}
        assert resumed.gaps == 0


async def test_a_token_of_another_installation_is_a_gap(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("twin_svc.watching._CATCH_UP_S", 0.1)
    await writer.commit(neighbours.tenant, [pressure("pump-1", 1.0)])
    await twins.twin_showing("pump-1", "pressure", 1.0)
    foreign = encode(ResumePoint(Coverage(0, {999: 1}), 0))
    watcher = await watch(twins, resume_token=foreign).begun()
    assert watcher.heard[0] == "gap"
    assert watcher.values()["pump-1"] == {"pressure": 1.0}


async def test_a_process_that_stops_says_where_to_go_on(neighbours: Neighbours, writer: Recorder) -> None:
    neighbours.has("pump-1")
    async with AsyncExitStack() as later:
        async with neighbours.twin_svc() as running:
            await running.ready()
            # A connection that outlives the process.
            channel = await later.enter_async_context(identities.channel(running.address, "twin_svc"))
            own = TwinApp(channel, contract_grpc.TwinServiceStub(channel), running.metadata)
            watcher = await watch(own).begun()
            ending = asyncio.create_task(watcher.until(lambda: watcher.end is not None))
        await ending
        assert watcher.end is not None
        assert watcher.end.resume_token == watcher.token
        with pytest.raises(grpc.aio.AioRpcError) as ended:
            await watcher.call.read()
    assert refusal(ended.value) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")


async def test_a_token_that_ends_ends_the_watch(neighbours: Neighbours, twins: TwinApp) -> None:
    short = TwinApp(twins.channel, twins.stub, neighbours.caller(exp=int(time.time()) + 5))
    watcher = await watch(short).begun()
    await watcher.until(lambda: watcher.end is not None)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await watcher.call.read()
    assert refusal(ended.value) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")


async def test_a_session_that_is_revoked_ends_its_watches_and_no_others(
    neighbours: Neighbours, twins: TwinApp
) -> None:
    spared = await watch(TwinApp(twins.channel, twins.stub, neighbours.caller(cred_id="another"))).begun()
    watcher = await watch(twins).begun()
    neighbours.mint.revoke(RevocationKind.SESSION, "test-session", tenant=neighbours.tenant)
    await watcher.until(lambda: watcher.end is not None)
    with pytest.raises(grpc.aio.AioRpcError) as ended:
        await watcher.call.read()
    assert refusal(ended.value) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await twins.twin("pump-1")
    assert refusal(refused.value) == (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_REVOKED")
    await spared.next()
    assert spared.end is None


async def test_who_reads_nothing_costs_nothing_and_slows_nobody(
    neighbours: Neighbours, writer: Recorder, twins: TwinApp
) -> None:
    deaf = [watch(twins, interval={}) for _ in range(20)]
    for each in deaf:
        await each.begun()
    reading = await watch(twins, interval={}).begun()
    for number in range(100):
        await writer.commit(neighbours.tenant, [pressure("pump-1", float(number), after_us=number)])
        await reading.until_shown("pump-1", "pressure", float(number))
    for each in deaf:
        await each.until_shown("pump-1", "pressure", 99.0)


async def test_tenants_see_their_own(neighbours: Neighbours, writer: Recorder, twins: TwinApp) -> None:
    await writer.commit(neighbours.tenant, [pressure("pump-1", 1.0)])
    await twins.twin_showing("pump-1", "pressure", 1.0)
    stranger = TwinApp(twins.channel, twins.stub, neighbours.caller(tenant="stranger"))
    assert (await watch(stranger, ids=["pump-1"]).begun()).twins == {}


@pytest.mark.parametrize(
    ("request_", "fields"),
    [
        ({"resume_token": "none"}, ["resume_token"]),
        ({"ids": ["A"]}, ["ids[0]"]),
        ({"interval": {"seconds": 61}}, ["interval"]),
        ({"area": {"south": 2, "north": 1}}, ["area"]),
        ({"area": {"south": -91}}, ["area.south"]),
    ],
)
async def test_what_is_wrong_is_named(twins: TwinApp, request_: dict[str, Any], fields: list[str]) -> None:
    refused = await failure(watch(twins, **request_).call.read())
    assert (refused.code, refused.fields) == (grpc.StatusCode.INVALID_ARGUMENT, fields)
