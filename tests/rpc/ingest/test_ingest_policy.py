"""The ingest policy: read, changed, and gone by."""

from typing import TYPE_CHECKING, Any

import grpc
import pytest

from meshkit.clock import SystemClock
from tests.rpc.ingest.neighbours import Ingest, reading, refused, until
from tests.rpc.ingest.streaming import NOW_US, columns, opened
from twinmesh.ingest.v1 import ingest_policy_service_pb2 as policy_pb2
from twinmesh.ingest.v1 import ingest_policy_service_pb2_grpc as policy_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

if TYPE_CHECKING:
    from twinmesh.ingest.v1.ingest_policy_service_pb2_grpc import IngestPolicyServiceAsyncStub

HOUR_US = 3_600_000_000
RIGHTS = ("ingest_policy:read", "ingest_policy:write")
YEAR_1970_US = 1_000_000
YEAR_2100_US = 4_102_444_800_000_000
TENANT_KIND = policy_pb2.SUBJECT_KIND_TENANT
DEVICE_KIND = policy_pb2.SUBJECT_KIND_DEVICE
OUT = ErrorReason.ERROR_REASON_TIME_OUT_OF_WINDOW
PARTITIONS = """
    SELECT array_agg(inhrelid::regclass::text ORDER BY inhrelid)
    FROM pg_inherits WHERE inhparent = 'telemetry.segment'::regclass
"""


def stub_of(ingest: Ingest) -> "IngestPolicyServiceAsyncStub":
    return policy_grpc.IngestPolicyServiceStub(ingest.channel)


async def get(ingest: Ingest, **caller: Any) -> policy_pb2.IngestPolicy:
    caller.setdefault("permissions", RIGHTS)
    return await stub_of(ingest).GetIngestPolicy(
        policy_pb2.GetIngestPolicyRequest(), metadata=ingest.caller(**caller)
    )


async def update(ingest: Ingest, *mask: str, **fields: Any) -> policy_pb2.IngestPolicy:
    request = policy_pb2.UpdateIngestPolicyRequest(ingest_policy=policy_pb2.IngestPolicy(**fields))
    request.update_mask.paths.extend(mask)
    return await stub_of(ingest).UpdateIngestPolicy(request, metadata=ingest.caller(permissions=RIGHTS))


def window(**fields: int) -> dict[str, Any]:
    made = policy_pb2.IngestPolicy()
    for name, seconds in fields.items():
        getattr(made, name).FromSeconds(seconds)
    return {name: getattr(made, name) for name in fields}


async def test_a_tenant_without_one_has_the_installations(ingest: Ingest) -> None:
    policy = await get(ingest)
    assert not policy.HasField("late_window")
    assert not policy.HasField("update_time")
    assert (policy.max_late_window.seconds, policy.max_future_window.seconds) == (7 * 86_400, 600)
    assert list(policy.limits) == []


async def test_a_change_is_written_by_mask_and_etag(ingest: Ingest) -> None:
    limit = policy_pb2.Limit(subject_kind=DEVICE_KIND, subject="pump-1", samples_per_second=5)
    first = await update(ingest, limits=[limit], **window(late_window=60, dead_letter_retention=7_200))
    assert (first.late_window.seconds, list(first.limits)) == (60, [limit])
    assert first.dead_letter_retention.seconds == 7_200

    second = await update(ingest, "late_window", "future_window", etag=first.etag, **window(future_window=0))
    assert not second.HasField("late_window")
    assert second.HasField("future_window")
    assert list(second.limits) == [limit]
    assert await get(ingest) == second
    # What is read may be sent back whole.
    assert (await update(ingest, **{field.name: value for field, value in second.ListFields()})).etag == '"3"'

    stale = await refused(update(ingest, etag=first.etag))
    assert (stale.code, stale.reason) == (grpc.StatusCode.ABORTED, "ETAG_MISMATCH")
    assert (await get(ingest, tenant="other")).etag == '"0"'


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (window(late_window=8 * 86_400), "ingest_policy.late_window"),
        (window(future_window=601), "ingest_policy.future_window"),
        (window(raw_retention=3600), "ingest_policy.raw_retention"),
        (window(dead_letter_retention=60), "ingest_policy.dead_letter_retention"),
        ({"limits": [policy_pb2.Limit(samples_per_second=1)]}, "ingest_policy.limits[0].subject_kind"),
        ({"limits": [policy_pb2.Limit(subject_kind=TENANT_KIND, subject="x")]}, "ingest_policy.limits[0]"),
        ({"limits": [policy_pb2.Limit(subject_kind=DEVICE_KIND, streams=1)]}, "ingest_policy.limits[0]"),
        (
            {"limits": [policy_pb2.Limit(subject_kind=DEVICE_KIND, inflight_bytes=1 << 30)]},
            "ingest_policy.limits[0]",
        ),
        (
            {"limits": [policy_pb2.Limit(subject_kind=TENANT_KIND, inflight_bytes=1 << 20)]},
            "ingest_policy.limits[0]",
        ),
        ({"limits": [policy_pb2.Limit(subject_kind=TENANT_KIND)] * 2}, "ingest_policy"),
    ],
)
async def test_what_no_policy_can_be_is_refused(ingest: Ingest, fields: dict[str, Any], named: str) -> None:
    told = await refused(update(ingest, **fields))
    assert (told.code, told.reason, told.fields) == (
        grpc.StatusCode.INVALID_ARGUMENT,
        "INVALID_FIELD",
        [named],
    )


async def test_it_needs_its_permissions(ingest: Ingest) -> None:
    told = await refused(get(ingest, permissions=["telemetry:write"]))
    assert (told.reason, told.metadata) == ("PERMISSION_MISSING", {"permission": "ingest_policy:read"})


async def test_each_door_goes_by_the_window(ingest: Ingest) -> None:
    await update(ingest, **window(late_window=3600, future_window=1))
    now_us = SystemClock().now_us()
    times = (now_us - 2 * HOUR_US, now_us, now_us + 5 * 60_000_000)
    sent = [reading(time_us=time_us, temperature=1.0) for time_us in times]

    answer = await ingest.send(*sent)
    assert [(refusal.reading_index, refusal.reason) for refusal in answer.refusals] == [(0, OUT), (2, OUT)]

    async with opened(ingest) as client:
        await client.batch(1, columns(1.0, 2.0, 3.0, times=times))
        (result,) = await client.durable(1)
        assert [(refusal.reading_index, refusal.reason) for refusal in result.refusals] == [
            (0, OUT),
            (2, OUT),
        ]


async def test_a_tenant_says_whether_messages_are_kept(ingest: Ingest) -> None:
    kept = "SELECT count(*) FROM telemetry.raw_message WHERE tenant_id = 'acme'"
    assert (await update(ingest, raw_enabled=False)).HasField("raw_enabled")
    await ingest.send(reading(temperature=1.0))
    assert await ingest.fetch_value(kept) == 0
    assert not (await update(ingest, "raw_enabled")).HasField("raw_enabled")
    await ingest.send(reading(temperature=1.0))
    assert await ingest.fetch_value(kept) == 1


async def test_what_another_process_wrote_holds_soon(ingest: Ingest) -> None:
    await ingest.fetch_value(
        "INSERT INTO telemetry.ingest_policy (tenant_id, late_window) VALUES ('acme', '1 hour')"
    )
    old = reading(time_us=NOW_US - 2 * HOUR_US, temperature=1.0)

    async def is_refused() -> bool:
        return bool((await ingest.send(old)).refusals)

    await until(is_refused)


async def test_a_stray_clock_makes_no_partition(ingest: Ingest) -> None:
    before = await ingest.fetch_value(PARTITIONS)
    strays = (YEAR_1970_US, YEAR_2100_US, -(2**62), 2**62)

    answer = await ingest.send(*(reading(time_us=time_us, temperature=1.0) for time_us in strays[:2]))
    assert [refusal.reason for refusal in answer.refusals] == [OUT, OUT]
    async with opened(ingest) as client:
        await client.batch(1, columns(1.0, 2.0, 3.0, 4.0, times=strays))
        await client.batch(2, readings=[reading(time_us=time_us, temperature=1.0) for time_us in strays[:2]])
        results = await client.durable(2)
        assert [(result.stored_samples, result.refused_samples) for result in results] == [(0, 4), (0, 2)]

    assert await ingest.samples() == {}
    assert await ingest.fetch_value(PARTITIONS) == before
