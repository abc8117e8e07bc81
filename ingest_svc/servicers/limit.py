"""LimitService: what limits do, out of the store."""

from typing import Any

from ingest_svc.conversion import to_micros
from ingest_svc.ingest_policies import IngestPolicies
from ingest_svc.policy_conversion import to_hit, to_usage
from meshkit import paging
from meshkit.identity import current_principal
from telemetry_store.limit_hits import HitFilter, LimitHitStore
from telemetry_store.limits import LimitStore
from twinmesh.ingest.v1 import limit_service_pb2 as limit_pb2
from twinmesh.ingest.v1 import limit_service_pb2_grpc as limit_grpc

_DEFAULT_PAGE = 100
_LONGEST_PAGE = 1_000
_LAST_ID = 2**63 - 1


class LimitServicer(limit_grpc.LimitServiceServicer):
    """Serves twinmesh.ingest.v1.LimitService.

    Args:
        hits: what was sent back.
        usage: what is used.
        policies: how large limits are.
    """

    def __init__(self, *, hits: LimitHitStore, usage: LimitStore, policies: IngestPolicies) -> None:
        self._hits = hits
        self._usage = usage
        self._policies = policies

    async def ListLimitHits(
        self, request: limit_pb2.ListLimitHitsRequest, context: Any
    ) -> limit_pb2.ListLimitHitsResponse:
        tenant = current_principal().tenant
        wanted = HitFilter(
            device=request.device_id,
            principal=request.principal,
            writer_id=request.writer_id,
            start_us=to_micros(request.start_time) if request.HasField("start_time") else None,
            end_us=to_micros(request.end_time) if request.HasField("end_time") else None,
        )
        question = ["limit_hits", tenant, wanted.device, wanted.principal, wanted.writer_id]
        question += [str(wanted.start_us), str(wanted.end_us)]
        size = paging.page_size(request.page_size, default=_DEFAULT_PAGE, maximum=_LONGEST_PAGE)
        before = _position(paging.decode(question, request.page_token))
        found = await self._hits.page(tenant, wanted, before=before, limit=size + 1)
        is_last = len(found) <= size
        return limit_pb2.ListLimitHitsResponse(
            limit_hits=map(to_hit, found[:size]),
            next_page_token="" if is_last else paging.encode(question, found[size - 1].hit_id),
        )

    async def GetLimitUsage(
        self, request: limit_pb2.GetLimitUsageRequest, context: Any
    ) -> limit_pb2.GetLimitUsageResponse:
        tenant = current_principal().tenant
        usage = await self._usage.usage(tenant)
        return limit_pb2.GetLimitUsageResponse(
            usage=[to_usage(each, self._policies.limit(each.key)) for each in usage]
        )


def _position(after: object | None) -> int | None:
    if after is not None and not (isinstance(after, int) and 0 < after <= _LAST_ID):
        raise paging.invalid_token()
    return after
