"""Connections of a tenant, counted over several processes of ingest_svc and for other services."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import grpc
import pytest

from meshkit.testing import identities
from telemetry_store.limits import CapacityAsk, CapacityGrant, LimitStore
from tests.rpc.ingest.neighbours import Ingest, refused, until
from tests.rpc.ingest.streaming import opened, streaming
from tests.rpc.ingest.test_ingest_limits import RIGHTS, hits, limit
from tests.rpc.ingest.test_stream_end import another
from twinmesh.ingest.v1 import connection_service_pb2 as pb
from twinmesh.ingest.v1 import connection_service_pb2_grpc, ingest_policy_service_pb2, limit_service_pb2
from twinmesh.ingest.v1 import ingest_policy_service_pb2_grpc as policy_grpc
from twinmesh.ingest.v1 import limit_service_pb2_grpc as limit_grpc

_TENANT = ingest_policy_service_pb2.SUBJECT_KIND_TENANT


def _limit(connections: int) -> ingest_policy_service_pb2.Limit:
    return ingest_policy_service_pb2.Limit(subject_kind=_TENANT, connections=connections)


async def _held(
    ingest: Ingest, holder: uuid.UUID, connections: int, *, refusing: int = 0, tenant: str = "acme"
) -> tuple[int, int, int]:
    """Hold connections as another service does."""
    request = pb.HoldConnectionsRequest(
        holder=str(holder), tenants=[pb.TenantConnections(tenant=tenant, connections=connections)]
    )
    if refusing:
        request.refused.add(tenant=tenant, principal="user:eve", connections=refusing)
    async with identities.channel(ingest.address, "ingest_svc", caller="twin_svc") as channel:
        stub: Any = connection_service_pb2_grpc.ConnectionServiceStub(channel)
        answer = await stub.HoldConnections(request)
    (held,) = answer.tenants
    return held.granted, held.used, held.limit


async def _used(ingest: Ingest) -> list[tuple[str, int, int]]:
    stub: Any = limit_grpc.LimitServiceStub(ingest.channel)
    answer = await stub.GetLimitUsage(
        limit_service_pb2.GetLimitUsageRequest(), metadata=ingest.caller(permissions=RIGHTS)
    )
    return [(each.limit_name, each.used, each.limit) for each in answer.usage]


async def test_streams_of_two_processes_and_what_other_services_hold_are_counted_together(
    ingest: Ingest, auth_address: str
) -> None:
    await limit(ingest, _limit(3))
    watching = uuid.uuid4()
    async with another(ingest, auth_address) as second, opened(ingest) as first, opened(second, "second"):
        assert await _held(ingest, watching, 5) == (1, 3, 3)
        assert await _used(ingest) == [("tenant_connections", 3, 3)]
        for where in (ingest, second):
            async with streaming(where) as refused_one:
                told = await refused_one.fails()
                assert (told.code, told.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "LIMIT_EXCEEDED")
                assert told.metadata["limit_name"] == "tenant_connections"
        # Another tenant is not concerned.
        assert await _held(ingest, watching, 5, tenant="other") == (5, 5, 20_000)

        async def are_kept() -> bool:
            return [(hit.limit_name, hit.batches) for hit in (await hits(ingest)).limit_hits] == [
                ("tenant_connections", 2)
            ]

        await until(are_kept)
        await first.close()

        async def is_free() -> bool:
            return await _held(ingest, watching, 5) == (2, 3, 3)

        await until(is_free)


async def test_what_a_dead_process_held_is_free_again(ingest: Ingest) -> None:
    await limit(ingest, _limit(2))
    dead, living = uuid.uuid4(), uuid.uuid4()
    assert await _held(ingest, dead, 2) == (2, 2, 2)
    assert await _held(ingest, living, 1) == (0, 2, 2)
    await ingest.execute("UPDATE telemetry.limit_lease SET renewed_at = renewed_at - interval '6 s'")
    assert await _held(ingest, living, 1) == (1, 1, 2)


async def test_connections_of_many_tenants_are_held_with_few_locks_at_once(
    ingest: Ingest, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    hold = LimitStore.hold

    async def hold_counted(
        self: LimitStore, asks: Sequence[CapacityAsk], *, holder: uuid.UUID | None = None
    ) -> list[CapacityGrant]:
        sizes.append(len(asks))
        return await hold(self, asks, holder=holder)

    monkeypatch.setattr(LimitStore, "hold", hold_counted)
    tenants = [pb.TenantConnections(tenant=f"t{number}", connections=number + 1) for number in range(10_000)]
    request = pb.HoldConnectionsRequest(holder=str(uuid.uuid4()), tenants=tenants)
    async with identities.channel(ingest.address, "ingest_svc", caller="twin_svc") as channel:
        stub: Any = connection_service_pb2_grpc.ConnectionServiceStub(channel)
        answer = await stub.HoldConnections(request)
    assert [held.granted for held in answer.tenants] == [each.connections for each in tenants]
    assert max(sizes) == 200


async def test_who_was_refused_elsewhere_is_told(ingest: Ingest) -> None:
    await limit(ingest, _limit(1))
    await _held(ingest, uuid.uuid4(), 1, refusing=7)

    async def are_kept() -> bool:
        return bool((await hits(ingest)).limit_hits)

    await until(are_kept)
    (hit,) = (await hits(ingest)).limit_hits
    assert (hit.limit_name, hit.principal, hit.batches, hit.limit) == ("tenant_connections", "user:eve", 7, 1)


async def test_the_installation_s_limit_holds_whatever_a_tenant_says(
    ingest: Ingest, auth_address: str
) -> None:
    await limit(ingest, _limit(1_000))
    async with another(ingest, auth_address, max_tenant_connections=2) as small:
        stub: Any = policy_grpc.IngestPolicyServiceStub(small.channel)
        policy = await stub.GetIngestPolicy(
            ingest_policy_service_pb2.GetIngestPolicyRequest(), metadata=ingest.caller(permissions=RIGHTS)
        )
        assert (policy.max_connections, policy.limits[0].connections) == (2, 1_000)
        assert await _held(small, uuid.uuid4(), 5) == (2, 2, 2)


async def test_only_services_hold_connections_and_only_tenants_are_limited(ingest: Ingest) -> None:
    stub: Any = connection_service_pb2_grpc.ConnectionServiceStub(ingest.channel)
    request = pb.HoldConnectionsRequest(holder=str(uuid.uuid4()))
    told = await refused(stub.HoldConnections(request, metadata=ingest.caller(permissions=RIGHTS)))
    assert told.reason == "CALLER_NOT_LISTED"
    wrong = ingest_policy_service_pb2.Limit(
        subject_kind=ingest_policy_service_pb2.SUBJECT_KIND_PRINCIPAL, connections=1
    )
    with pytest.raises(grpc.aio.AioRpcError) as invalid:
        await limit(ingest, wrong)
    assert invalid.value.code() == grpc.StatusCode.INVALID_ARGUMENT
