"""Tenants' policies, and the limits that all processes hold together."""

import uuid
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial

from ingest_svc.app.common import Common
from ingest_svc.connections import ConnectionLimits
from ingest_svc.ingest_policies import IngestPolicies
from ingest_svc.limit_hits import LimitHits
from ingest_svc.limiter import Limited, Limiter
from ingest_svc.servicers.connection import ConnectionServicer
from ingest_svc.servicers.ingest_policy import IngestPolicyServicer
from ingest_svc.servicers.limit import LimitServicer
from ingest_svc.servicers.storage_policy import StoragePolicyServicer
from meshkit.connections import Connections
from meshkit.metrics import meter, observe_connections
from meshkit.server import Registration
from telemetry_store.ingest_policies import INGEST_POLICIES
from telemetry_store.limit_hits import LimitHitStore
from telemetry_store.limits import LimitStore
from telemetry_store.storage_policies import STORAGE_POLICIES
from telemetry_store.tenant_policies import PolicyStore
from twinmesh.ingest.v1 import connection_service_pb2_grpc as connection_grpc
from twinmesh.ingest.v1 import ingest_policy_service_pb2_grpc as policy_grpc
from twinmesh.ingest.v1 import limit_service_pb2_grpc as limit_grpc
from twinmesh.ingest.v1 import storage_policy_service_pb2_grpc as storage_policy_grpc


@dataclass(frozen=True, slots=True)
class Limits:
    """What the other parts are given.

    Attributes:
        policies: of tenants.
        limiter: of what they send.
        connections: that they have open here.
        registrations: of the services that tell and change all this.
    """

    policies: IngestPolicies
    limiter: Limiter
    connections: Connections
    registrations: Sequence[Registration]


@asynccontextmanager
async def running(common: Common) -> AsyncIterator[Limits]:
    """Go by tenants' policies while the context is open."""
    counts = LimitStore(pool=common.pool, holder=uuid.uuid4())
    ingest_policies = PolicyStore(pool=common.pool, table=INGEST_POLICIES)
    hit_store = LimitHitStore(pool=common.pool)

    def limited(limit: Limited, times: int = 1) -> None:
        common.metrics.limited(limit.key.name, times)
        hits.add(limit, times)

    async with (
        IngestPolicies(
            source=ingest_policies,
            live_window=common.settings.live_window,
            keeps_raw=common.settings.raw_messages,
            max_connections=common.settings.max_tenant_connections,
        ) as policies,
        LimitHits(sink=hit_store, clock=common.clock) as hits,
        Limiter(limits_of=policies.limits, source=counts, on_limited=limited) as limiter,
    ):
        connection_limits = ConnectionLimits(policies=policies, counts=counts, on_limited=limited)
        async with Connections(hold=partial(connection_limits.hold, uuid.uuid4())) as connections:
            observe_connections(meter(), connections)
            yield Limits(
                policies,
                limiter,
                connections,
                [
                    Registration(
                        "twinmesh.ingest.v1.IngestPolicyService",
                        policy_grpc.add_IngestPolicyServiceServicer_to_server,
                        IngestPolicyServicer(
                            store=ingest_policies,
                            policies=policies,
                            live_window=common.settings.live_window,
                            max_connections=common.settings.max_tenant_connections,
                        ),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.ConnectionService",
                        connection_grpc.add_ConnectionServiceServicer_to_server,
                        ConnectionServicer(limits=connection_limits),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.LimitService",
                        limit_grpc.add_LimitServiceServicer_to_server,
                        LimitServicer(hits=hit_store, usage=counts, policies=policies),
                    ),
                    Registration(
                        "twinmesh.ingest.v1.StoragePolicyService",
                        storage_policy_grpc.add_StoragePolicyServiceServicer_to_server,
                        StoragePolicyServicer(
                            store=PolicyStore(pool=common.pool, table=STORAGE_POLICIES),
                            effective=common.settings.effective,
                        ),
                    ),
                ],
            )
