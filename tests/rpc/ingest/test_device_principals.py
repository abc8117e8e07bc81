"""Devices and API keys that are bound to devices write for these only, whichever way they send."""

import json

import pytest

from meshkit.asset_changes import AssetChange
from meshkit.clock import SystemClock
from meshkit.identity import PrincipalKind
from meshkit.scope import Scope
from tests.rpc.ingest.gateway_site import HUB, add_gateways
from tests.rpc.ingest.neighbours import TENANT, Ingest, reading
from tests.rpc.ingest.streaming import columns, streaming
from tests.rpc.ingest.test_dead_letters import Letters
from tests.rpc.ingest.test_ingest_events import event
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_NOT_OWN = ErrorReason.ERROR_REASON_DEVICE_NOT_OWN
_Metadata = tuple[tuple[str, str], ...]
_CHILD, _NEIGHBOUR = f"{HUB}-b1", "pump-1"
# Another's, a child of another, one of another tenant, none at all.
_OTHERS = [_NEIGHBOUR, "ble-1-b1", "foreign", "absent"]


@pytest.fixture(params=["certificate", "key"])
def hub(ingest: Ingest, request: pytest.FixtureRequest) -> _Metadata:
    """Call metadata of the hub, or of a key that is bound to it."""
    add_gateways(ingest.assets)
    if request.param == "certificate":
        return ingest.caller(subject=HUB, permissions=["telemetry:write"], kind=PrincipalKind.DEVICE)
    return _key(ingest, Scope(gateway_ids=frozenset({HUB})))


def _key(ingest: Ingest, scope: Scope) -> _Metadata:
    ingest.mint.key_scopes["k7"] = scope
    return ingest.caller(
        subject="k7", permissions=["telemetry:write"], kind=PrincipalKind.API_KEY, scope=scope
    )


def _told(answer: ingest_pb2.IngestTelemetryResponse) -> list[tuple[str, int, str]]:
    return [(each.device_id, each.reason, each.message) for each in answer.refusals]


async def _devices(ingest: Ingest) -> set[str]:
    return {device_id for device_id, _, _ in await ingest.samples()}


def _words(device_id: str) -> str:
    return f"device {device_id!r} is none of those that the sender's credential is bound to"


async def test_readings_of_others_are_refused_whether_they_exist_or_not(
    ingest: Ingest, hub: _Metadata
) -> None:
    own = [reading(HUB, count=1), reading(_CHILD, temperature=2.0)]
    answer = await ingest.send(*own, *(reading(each, temperature=3.0) for each in _OTHERS), caller=hub)
    assert answer.stored_samples == 2
    assert _told(answer) == [(each, _NOT_OWN, _words(each)) for each in _OTHERS]
    assert await _devices(ingest) == {HUB, _CHILD}


async def test_a_stream_stores_no_column_of_others(ingest: Ingest, hub: _Metadata) -> None:
    names = [_CHILD, *_OTHERS]
    async with streaming(ingest, caller=hub) as stream:
        await stream.open()
        await stream.define(*((name, "temperature") for name in names))
        every = range(len(names))
        await stream.batch(1, columns(*map(float, every), aliases=list(every), lengths=[1] * len(names)))
        (result,) = await stream.durable(1)
    assert result.stored_samples == 1
    assert [(each.device_id, each.reason) for each in result.refusals] == [
        (name, _NOT_OWN) for name in _OTHERS
    ]
    assert await _devices(ingest) == {_CHILD}


@pytest.mark.parametrize("device_id", [_NEIGHBOUR, "ble-1", "absent"])
async def test_messages_of_others_are_refused_unread(ingest: Ingest, hub: _Metadata, device_id: str) -> None:
    for payload in (b'{"temperature": 1}', b"no JSON"):
        request = ingest_pb2.IngestMessageRequest(device_id=device_id, payload=payload)
        answer = await ingest.stub.IngestMessage(request, metadata=hub)
        assert [each.reason for each in answer.refusals] == [_NOT_OWN]
    assert not await ingest.samples()


async def test_a_gateways_message_reaches_its_children(ingest: Ingest, hub: _Metadata) -> None:
    time_s = SystemClock().now_us() / 1e6
    payload = json.dumps([{"tag": {"mac": "b1"}, "time": time_s, "count": 7}]).encode()
    request = ingest_pb2.IngestMessageRequest(device_id=HUB, payload=payload)
    answer = await ingest.stub.IngestMessage(request, metadata=hub)
    assert (answer.stored_samples, list(answer.refusals)) == (1, [])
    assert await _devices(ingest) == {_CHILD}


async def test_events_of_others_and_of_assets_are_refused(ingest: Ingest, hub: _Metadata) -> None:
    events = [event(_CHILD), *map(event, _OTHERS), event(asset_id="hall")]
    request = ingest_pb2.IngestEventsRequest(events=events)
    answer = await ingest.stub.IngestEvents(request, metadata=hub)
    asset_unknown = ErrorReason.ERROR_REASON_ASSET_UNKNOWN
    assert [each.reason for each in answer.refusals] == [_NOT_OWN] * len(_OTHERS) + [asset_unknown]
    assert answer.stored_events == 1
    assert await ingest.fetch_value("SELECT array_agg(device_id) FROM telemetry.event") == [_CHILD]


async def test_replaying_what_a_device_was_refused_does_not_store_it(ingest: Ingest, hub: _Metadata) -> None:
    """Whoever replays has more rights than the device; the letter is the device's all the same."""
    await ingest.send(reading(_NEIGHBOUR, temperature=1.0), caller=hub)
    request = ingest_pb2.IngestMessageRequest(device_id=_NEIGHBOUR, payload=b'{"temperature": 1}')
    await ingest.stub.IngestMessage(request, metadata=hub)
    async with streaming(ingest, caller=hub) as stream:
        await stream.open()
        await stream.define((_NEIGHBOUR, "temperature"))
        await stream.batch(1, columns(1.0))
        await stream.durable(1)
    letters = Letters(ingest)
    assert await letters.reasons() == ["DEVICE_NOT_OWN"] * 3
    answer = await letters.replay()
    assert (answer.failed, answer.stored_samples) == (3, 0)
    assert not await ingest.samples()


async def test_a_key_that_is_bound_to_a_gateway_as_a_device_does_not_speak_for_its_children(
    ingest: Ingest,
) -> None:
    add_gateways(ingest.assets)
    key = _key(ingest, Scope(frozenset({HUB, _NEIGHBOUR})))
    answer = await ingest.send(
        reading(HUB, count=1), reading(_NEIGHBOUR, temperature=1.0), reading(_CHILD, count=1), caller=key
    )
    assert (answer.stored_samples, [each.device_id for each in answer.refusals]) == (2, [_CHILD])
    payload = json.dumps([{"tag": {"mac": "b1"}, "time": SystemClock().now_us() / 1e6, "count": 7}]).encode()
    request = ingest_pb2.IngestMessageRequest(device_id=HUB, payload=payload)
    told = await ingest.stub.IngestMessage(request, metadata=key)
    assert [each.reason for each in told.refusals] == [_NOT_OWN]
    assert await _devices(ingest) == {HUB, _NEIGHBOUR}
    assert (await Letters(ingest).replay()).stored_samples == 0


async def test_a_child_that_is_moved_to_another_gateway_is_its_keys_no_more(
    ingest: Ingest, hub: _Metadata
) -> None:
    async with streaming(ingest, caller=hub) as stream:
        await stream.open()
        await stream.define((_CHILD, "temperature"))
        await stream.batch(1, columns(1.0))
        assert await stream.durable(1) == []
        ingest.assets.add_child(_CHILD, "ble-1", "b1")
        await ingest.announce(AssetChange(TENANT, [_CHILD]).payload)
        # Streams look for changes once in a while.
        sequence = 1
        results: list[ingest_pb2.BatchResult] = []
        while not results:
            sequence += 1
            await stream.batch(sequence, columns(2.0))
            results = await stream.durable(sequence)
    (result,) = results
    assert [each.reason for each in result.refusals] == [_NOT_OWN]
