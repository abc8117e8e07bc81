"""TwinService: the contract's side of twins and history."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from meshkit import paging
from meshkit.clock import Clock
from meshkit.db import Connection
from meshkit.errors import DomainError
from meshkit.identity import current_principal
from telemetry_store.history import read_history
from twin_svc import messages, tokens, watch_messages
from twin_svc.fleet import Fleet
from twin_svc.history import Bookmark, bookmark_from_json, bookmark_to_json, time_range
from twin_svc.registry import DeviceRegistry
from twin_svc.watches import Watches
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc

_TWINS_PER_PAGE, _MOST_TWINS = 100, 1_000
_SAMPLES_PER_PAGE, _MOST_SAMPLES, _MOST_JUDGED_SAMPLES = 10_000, 100_000, 50_000


class TwinServicer(contract_grpc.TwinServiceServicer):
    """Serves twins from memory and history from the telemetry store.

    Args:
        fleet: the latest samples.
        registry: which devices a tenant has.
        watches: opens watches.
        tenant_snapshot: opens a REPEATABLE READ transaction that sees one tenant.
        clock: tells the present.
        future_us: how far live telemetry may run ahead of now.
    """

    def __init__(
        self,
        *,
        fleet: Fleet,
        registry: DeviceRegistry,
        watches: Watches,
        tenant_snapshot: Callable[[str], AbstractAsyncContextManager[Connection]],
        clock: Clock,
        future_us: int,
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._watches = watches
        self._tenant_snapshot = tenant_snapshot
        self._clock = clock
        self._future_us = future_us
        self._watch_messages = watch_messages.WatchMessages()

    async def GetTwin(self, request: contract.GetTwinRequest, context: Any) -> contract.Twin:
        tenant = current_principal().tenant
        device = await self._registry.get(tenant, request.id)
        return messages.twin_message(self._fleet.twin(tenant, device), self._clock.now_us())

    async def ListTwins(self, request: contract.ListTwinsRequest, context: Any) -> contract.ListTwinsResponse:
        tenant = current_principal().tenant
        question = [sorted(set(request.ids)), request.device_type_id]
        size = paging.page_size(request.page_size, default=_TWINS_PER_PAGE, maximum=_MOST_TWINS)
        after = paging.decode(question, request.page_token)
        if request.ids:
            page = await self._registry.choose(
                tenant,
                device_ids=request.ids,
                device_type_id=request.device_type_id,
                page_size=size,
                after=str(after or ""),
            )
        else:
            page = await self._registry.page(
                tenant, device_type_id=request.device_type_id, page_size=size, page_token=str(after or "")
            )
        now_us = self._clock.now_us()
        twins = [self._fleet.twin(tenant, device) for device in page.devices]
        return contract.ListTwinsResponse(
            twins=[messages.twin_message(twin, now_us) for twin in twins],
            next_page_token=paging.encode(question, page.after) if page.after else "",
        )

    async def QueryHistory(
        self, request: contract.QueryHistoryRequest, context: Any
    ) -> contract.QueryHistoryResponse:
        tenant = current_principal().tenant
        start, end = messages.time_bound(request, "start_time"), messages.time_bound(request, "end_time")
        question = [request.id, sorted(request.metrics), start, end, request.include_quality]
        after = paging.decode(question, request.page_token)
        bookmark = None if after is None else bookmark_from_json(after)
        span = (
            time_range(start, end, now_us=self._clock.now_us(), future_us=self._future_us)
            if bookmark is None
            else bookmark.range
        )
        await self._registry.get(tenant, request.id)
        async with self._tenant_snapshot(tenant) as connection:
            page = await read_history(
                connection,
                tenant=tenant,
                device_id=request.id,
                metrics=request.metrics,
                start_us=span.start_us,
                end_us=span.end_us,
                position=bookmark.position if bookmark else None,
                limit=paging.page_size(
                    request.page_size,
                    default=_SAMPLES_PER_PAGE,
                    maximum=_MOST_JUDGED_SAMPLES if request.include_quality else _MOST_SAMPLES,
                ),
                with_quality=request.include_quality,
            )
        token = (
            paging.encode(question, bookmark_to_json(Bookmark(span, page.position))) if page.position else ""
        )
        return contract.QueryHistoryResponse(
            metrics=[messages.history_message(history) for history in page.histories], next_page_token=token
        )

    async def WatchTwins(self, request: contract.WatchTwinsRequest, context: Any) -> AsyncIterator[Any]:
        resumed = tokens.decode(request.resume_token) if request.resume_token else None
        resume_token = ""
        has_begun = False
        try:
            async with self._watches.open(
                current_principal(),
                messages.selection(request),
                resumed=resumed,
                interval_s=messages.interval_s(request),
            ) as events:
                async for event in events:
                    has_begun = True
                    resume_token = watch_messages.resume_token(event) or resume_token
                    for response in self._watch_messages.responses(event, self._clock.now_us()):
                        yield response
        except DomainError as error:
            # An error before anything was told is a plain one, in JSON too.
            if has_begun:
                yield watch_messages.end_response(error, resume_token)
            raise
