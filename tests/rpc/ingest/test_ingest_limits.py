"""Limits of a tenant: what they send back, how that is told, and that nothing is lost by it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from google.rpc import error_details_pb2

from meshkit.identity import PrincipalKind
from meshkit.status import status_of
from tests.rpc.ingest.neighbours import Ingest, reading, refused, until
from tests.rpc.ingest.streaming import NOW_US, Client, columns, locked_cursor, opened, streaming
from twinmesh.ingest.v1 import ingest_policy_service_pb2 as policy_pb2
from twinmesh.ingest.v1 import ingest_policy_service_pb2_grpc as policy_grpc
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.ingest.v1 import limit_service_pb2 as limit_pb2
from twinmesh.ingest.v1 import limit_service_pb2_grpc as limit_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

if TYPE_CHECKING:
    from twinmesh.ingest.v1.ingest_policy_service_pb2_grpc import IngestPolicyServiceAsyncStub
    from twinmesh.ingest.v1.limit_service_pb2_grpc import LimitServiceAsyncStub

TENANT = policy_pb2.SUBJECT_KIND_TENANT
DEVICE = policy_pb2.SUBJECT_KIND_DEVICE
PRINCIPAL = policy_pb2.SUBJECT_KIND_PRINCIPAL
CONNECTION = policy_pb2.SUBJECT_KIND_CONNECTION
RIGHTS = ("ingest_policy:read", "ingest_policy:write")
ME = "user:tester"
LIMIT_EXCEEDED = ErrorReason.ERROR_REASON_LIMIT_EXCEEDED


async def limit(ingest: Ingest, *limits: policy_pb2.Limit) -> None:
    stub: IngestPolicyServiceAsyncStub = policy_grpc.IngestPolicyServiceStub(ingest.channel)
    request = policy_pb2.UpdateIngestPolicyRequest(ingest_policy=policy_pb2.IngestPolicy(limits=limits))
    request.update_mask.paths.append("limits")
    await stub.UpdateIngestPolicy(request, metadata=ingest.caller(permissions=RIGHTS))


async def hits(ingest: Ingest, **filters: Any) -> limit_pb2.ListLimitHitsResponse:
    stub: LimitServiceAsyncStub = limit_grpc.LimitServiceStub(ingest.channel)
    return await stub.ListLimitHits(
        limit_pb2.ListLimitHitsRequest(**filters), metadata=ingest.caller(permissions=RIGHTS)
    )


def samples(count: int, device_id: str = "pump-1") -> list[Any]:
    return [reading(device_id, temperature=1.0) for _ in range(count)]


async def throttled(client: Client, sequence: int) -> Any:
    """Send a batch again and again until a limit sends it back."""
    throttle = await client.throttle()
    assert (throttle.first_refused_sequence, throttle.reason) == (sequence, LIMIT_EXCEEDED)
    return throttle


async def test_a_request_over_a_limit_is_told_which_and_when_to_come_again(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=TENANT, samples_per_second=1))
    await ingest.send(*samples(20))  # More than a second's worth is let in, and owed.
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await ingest.send(*samples(2))
    status = status_of(failed.value)
    assert status is not None
    info, retry = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    quota = error_details_pb2.QuotaFailure()
    for detail, target in zip(status.details, (info, quota, retry), strict=True):
        assert detail.Unpack(target)
    assert failed.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert info.reason == "LIMIT_EXCEEDED"
    assert (info.metadata["limit_name"], info.metadata["limit"], info.metadata["subject"]) == (
        "tenant_samples_per_second",
        "1",
        "acme",
    )
    assert 1 <= int(info.metadata["used"]) <= 20
    (violation,) = quota.violations
    assert (violation.subject, violation.quota_metric) == ("tenant:acme", "tenant_samples_per_second")
    assert 15 <= retry.retry_delay.seconds <= 20

    # Another tenant is not concerned.
    await ingest.send(*samples(2, "foreign"), caller=ingest.caller(tenant="other"))
    # And neither is this one, once the limit is gone.
    await limit(ingest)
    await ingest.send(*samples(2))


@pytest.mark.parametrize(
    ("limited", "name", "subject"),
    [
        (policy_pb2.Limit(subject_kind=TENANT, bytes_per_second=1), "tenant_bytes_per_second", "acme"),
        (policy_pb2.Limit(subject_kind=PRINCIPAL, samples_per_second=1), "principal_samples_per_second", ME),
        (
            policy_pb2.Limit(subject_kind=PRINCIPAL, subject=ME, bytes_per_second=1),
            "principal_bytes_per_second",
            ME,
        ),
        (policy_pb2.Limit(subject_kind=DEVICE, samples_per_second=1), "device_samples_per_second", "pump-1"),
        (
            policy_pb2.Limit(subject_kind=DEVICE, subject="pump-1", bytes_per_second=1),
            "device_bytes_per_second",
            "pump-1",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_each_subject_has_limits_of_its_own(
    ingest: Ingest, limited: policy_pb2.Limit, name: str, subject: str
) -> None:
    await limit(ingest, limited)
    await ingest.send(*samples(60))
    told = await ingest.refused(*samples(1))
    assert (told.reason, told.metadata["limit_name"], told.metadata["subject"]) == (
        "LIMIT_EXCEEDED",
        name,
        subject,
    )
    # A stream is held by the same.
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0))
        throttle = await throttled(client, 1)
        assert (throttle.limit_name, throttle.limit) == (name, 1)
        assert throttle.retry_after.ToMilliseconds() >= 250


async def test_messages_are_limited_like_readings(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=DEVICE, samples_per_second=1))

    async def send(device_id: str) -> None:
        payload = json.dumps([{"time": NOW_US / 1e6 + each, "count": each} for each in range(60)]).encode()
        await ingest.stub.IngestMessage(
            ingest_pb2.IngestMessageRequest(device_id=device_id, payload=payload), metadata=ingest.caller()
        )

    await send("pump-1")
    told = await refused(send("pump-1"))
    assert (told.reason, told.metadata["subject"]) == ("LIMIT_EXCEEDED", "pump-1")
    async with opened(ingest) as client:
        message = ingest_pb2.DeviceMessage(device_id="pump-1", payload=b'{"count": 9}')
        await client.batch(1, messages=[message])
        assert (await throttled(client, 1)).limit_name == "device_samples_per_second"
    await send("pump-2")


async def test_only_the_device_that_is_limited_is_held_back(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=DEVICE, subject="pump-1", samples_per_second=1))
    await ingest.send(*samples(20), *samples(20, "pump-2"))
    await ingest.send(*samples(100, "pump-2"))
    await ingest.refused(*samples(1), *samples(1, "pump-2"))
    async with streaming(ingest) as client:
        await client.open()
        await client.define(("pump-1", "temperature"), ("pump-2", "temperature"))
        await client.batch(1, columns(1.0, 2.0, aliases=(1,)))
        assert await client.durable(1) == []
        await client.batch(2, columns(1.0, 2.0, aliases=(1, 0), lengths=(1, 1)))
        assert (await throttled(client, 2)).limit_name == "device_samples_per_second"


async def test_who_writes_for_another_uses_up_its_own_limits(ingest: Ingest) -> None:
    """What is refused of a device that names another counts, but not against that one."""
    await limit(ingest, policy_pb2.Limit(subject_kind=DEVICE, samples_per_second=1))
    writer = ingest.caller(subject="pump-2", kind=PrincipalKind.DEVICE)
    answer = await ingest.send(*samples(20), caller=writer)
    assert (answer.stored_samples, answer.refused_samples) == (0, 20)
    told = await refused(ingest.send(*samples(1), caller=writer))
    assert (told.reason, told.metadata["subject"]) == ("LIMIT_EXCEEDED", "pump-2")
    assert (await ingest.send(*samples(1))).stored_samples == 1
    # A stream likewise.
    async with streaming(ingest, caller=writer) as client:
        await client.open()
        await client.define(("pump-1", "temperature"))
        await client.batch(1, columns(1.0))
        throttle = await throttled(client, 1)
        assert throttle.limit_name == "device_samples_per_second"
        assert "'pump-2'" in throttle.message


async def test_what_a_throttle_sent_back_is_stored_once_when_it_comes_again(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=TENANT, samples_per_second=5))
    sent = {sequence: columns(*map(float, range(5))) for sequence in range(1, 9)}
    throttles = 0
    async with opened(ingest) as client:
        for sequence, content in sent.items():
            await client.batch(sequence, content)
        durable = 0
        while durable < len(sent):
            response = await client.read()
            if response.HasField("throttle"):
                throttles += 1
                assert response.throttle.limit_name == "tenant_samples_per_second"
                await asyncio.sleep(response.throttle.retry_after.ToMilliseconds() / 1000)
                for sequence in range(response.throttle.first_refused_sequence, len(sent) + 1):
                    await client.batch(sequence, sent[sequence])
            else:
                durable = response.ack.durable_through
    assert throttles
    assert len(await ingest.samples()) == 40


async def test_a_connection_is_limited_for_itself(ingest: Ingest) -> None:
    await limit(
        ingest,
        policy_pb2.Limit(subject_kind=CONNECTION, samples_per_second=1, inflight_bytes=4 << 20),
    )
    async with streaming(ingest) as client, opened(ingest, "other") as other:
        assert (await client.open()).max_inflight_bytes == 4 << 20
        await client.define(("pump-1", "temperature"))
        await client.batch(1, columns(*[1.0] * 20))
        assert await client.durable(1) == []
        await client.batch(2, columns(1.0))
        throttle = await throttled(client, 2)
        assert (throttle.limit_name, throttle.limit) == ("connection_samples_per_second", 1)
        assert throttle.retry_after.ToMilliseconds() > 10_000
        await other.batch(1, columns(*[1.0] * 20))
        assert await other.durable(1) == []


async def test_streams_are_counted_while_they_are_open(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=PRINCIPAL, streams=1))
    async with opened(ingest) as client:
        async with streaming(ingest) as second:
            await second.send(open={"writer_id": "second"})
            told = await second.fails()
            assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
            assert told.metadata == {
                "limit_name": "principal_streams",
                "limit": "1",
                "used": "1",
                "subject": ME,
            }
        await client.close()

    async def is_free() -> bool:
        async with streaming(ingest) as third:
            await third.send(open={"writer_id": "third"})
            return (await third.call.read()) is not grpc.aio.EOF

    async def opens() -> bool:
        try:
            return await is_free()
        except grpc.aio.AioRpcError:
            return False

    await until(opens)


async def test_bytes_in_flight_are_given_back_when_they_are_durable(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    # What waits is not to be thrown back, however long sending takes.
    monkeypatch.setattr("telemetry_store.writer.LOCK_WAIT_S", 60.0)
    await limit(ingest, policy_pb2.Limit(subject_kind=TENANT, inflight_bytes=4 << 20))
    content = columns(*[1.0] * 60_000)  # about 1 MiB
    async with opened(ingest) as client:
        async with locked_cursor(ingest):
            for sequence in range(1, 6):
                await client.batch(sequence, content)
            throttle = await throttled(client, 5)
            assert (throttle.limit_name, throttle.limit) == ("tenant_inflight_bytes", 4 << 20)
        await client.durable(4)
        await client.batch(5, content)
        await client.durable(5)


async def test_a_duplicate_gives_its_samples_back(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=TENANT, samples_per_second=1000))
    sent = samples(400)
    for time_us, each in enumerate(sent):
        each.time.GetCurrentTime()
        each.time.FromMicroseconds(each.time.ToMicroseconds() + time_us)
    await ingest.send(*sent, request_id="r")
    for _ in range(5):  # Each time it is again what was given back.
        assert (await ingest.send(*sent, request_id="r")).duplicate


async def test_what_was_limited_is_told_with_its_range(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=TENANT, samples_per_second=1))
    await ingest.send(*samples(30))
    await ingest.refused(*samples(3))
    async with opened(ingest, "gw-7") as client:
        for sequence in (1, 1):
            await client.batch(sequence, columns(1.0, 2.0))
            await throttled(client, sequence)

    async def are_kept() -> bool:
        return len((await hits(ingest)).limit_hits) >= 2

    await until(are_kept)
    by_writer = {hit.writer_id: hit for hit in (await hits(ingest)).limit_hits}
    stream, unary = by_writer["gw-7"], by_writer[""]
    assert (stream.limit_name, stream.limit, stream.principal) == ("tenant_samples_per_second", 1, ME)
    assert (stream.batches, stream.samples) == (2, 4)
    assert (stream.first_sequence, stream.last_sequence) == (1, 1)
    assert stream.first_time.ToMicroseconds() <= stream.last_time.ToMicroseconds()
    assert (unary.batches, unary.samples, unary.first_sequence) == (1, 3, 0)

    first = await hits(ingest, page_size=1)
    second = await hits(ingest, page_size=1, page_token=first.next_page_token)
    assert [*first.limit_hits, *second.limit_hits] == list((await hits(ingest)).limit_hits)
    assert (await hits(ingest, writer_id="gw-7")).limit_hits == [stream]
    assert list((await hits(ingest, device_id="pump-1")).limit_hits) == []
    assert list((await hits(ingest, principal="user:else")).limit_hits) == []
    assert list((await hits(ingest, end_time=stream.first_time)).limit_hits) in ([], [unary])
    wrong = await refused(hits(ingest, writer_id="gw-7", page_token=first.next_page_token))
    assert wrong.reason == "PAGE_TOKEN_INVALID"


async def test_usage_is_told_with_the_limits(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=PRINCIPAL, streams=3, samples_per_second=1_000_000))
    async with opened(ingest) as client:
        await client.batch(1, columns(*[1.0] * 50_000))
        await client.durable(1)
        stub: LimitServiceAsyncStub = limit_grpc.LimitServiceStub(ingest.channel)
        answer = await stub.GetLimitUsage(
            limit_pb2.GetLimitUsageRequest(), metadata=ingest.caller(permissions=RIGHTS)
        )
    usage = {each.limit_name: each for each in answer.usage}
    assert (usage["principal_streams"].limit, usage["principal_streams"].used) == (3, 1)
    assert (usage["principal_samples_per_second"].subject, usage["principal_samples_per_second"].limit) == (
        ME,
        1_000_000,
    )
    # With what the process took ahead: a tenth of a second's worth at most.
    assert 0 < usage["principal_samples_per_second"].used <= 150_000


async def test_a_limit_cannot_be_counted_while_the_database_is_away(ingest: Ingest) -> None:
    await limit(ingest, policy_pb2.Limit(subject_kind=TENANT, samples_per_second=10))
    await ingest.fetch_value("REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA telemetry FROM twinmesh_ingest")
    told = await ingest.refused(*samples(1))
    assert (told.code, told.reason) == (grpc.StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
