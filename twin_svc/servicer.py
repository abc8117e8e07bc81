"""TwinService and EventService: the contract's side of twins, history and events."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any

from meshkit import paging
from meshkit.clock import Clock
from meshkit.db import Connection
from meshkit.errors import DomainError
from meshkit.identity import current_principal
from meshkit.open_calls import current_call
from meshkit.policy import require_unbound
from meshkit.time_bounds import time_bound
from telemetry_store.events import EventFilter, read_newest
from telemetry_store.history import HistoryQuestion, find_series, read_history
from telemetry_store.placements import read_placements
from telemetry_store.tiers.reader import Archive
from twin_svc import messages, tokens, watch_messages
from twin_svc.events import AssetSource, event_range, first_place, place_from_json, wanted_assets
from twin_svc.fleet import Fleet
from twin_svc.history import Bookmark, bookmark_from_json, bookmark_to_json, time_range
from twin_svc.registry import DeviceRegistry
from twin_svc.watches import Watches
from twinmesh.twin.v1 import event_service_pb2 as event_contract
from twinmesh.twin.v1 import event_service_pb2_grpc as event_contract_grpc
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1 import twin_service_pb2_grpc as contract_grpc

_TWINS_PER_PAGE, _MOST_TWINS = 100, 1_000
_MOST_PLACEMENTS = 1_000
_SAMPLES_PER_PAGE, _MOST_SAMPLES, _MOST_JUDGED_SAMPLES = 10_000, 100_000, 50_000
_EVENTS_PER_PAGE, _MOST_EVENTS = 100, 1_000


class TwinServicer(contract_grpc.TwinServiceServicer):
    """Serves twins from memory and history from the telemetry store.

    Args:
        fleet: the latest samples.
        registry: which devices a tenant has.
        watches: opens watches.
        tenant_snapshot: opens a REPEATABLE READ transaction that sees one tenant.
        clock: tells the present.
        future_us: how far live telemetry may run ahead of now.
        archive: the tier below; None: nothing was ever archived.
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
        archive: Archive | None,
    ) -> None:
        self._fleet = fleet
        self._registry = registry
        self._watches = watches
        self._tenant_snapshot = tenant_snapshot
        self._clock = clock
        self._future_us = future_us
        self._archive = archive
        self._watch_messages = watch_messages.WatchMessages()

    async def GetTwin(self, request: contract.GetTwinRequest, context: Any) -> contract.Twin:
        caller = current_principal()
        device = await self._registry.get(caller, request.id)
        return messages.twin_message(self._fleet.twin(caller.tenant, device), self._clock.now_us())

    async def ListTwins(self, request: contract.ListTwinsRequest, context: Any) -> contract.ListTwinsResponse:
        caller = current_principal()
        question = [sorted(set(request.ids)), request.device_type_id]
        size = paging.page_size(request.page_size, default=_TWINS_PER_PAGE, maximum=_MOST_TWINS)
        after = paging.decode(question, request.page_token)
        if request.ids:
            page = await self._registry.choose(
                caller,
                device_ids=request.ids,
                device_type_id=request.device_type_id,
                page_size=size,
                after=str(after or ""),
            )
        else:
            page = await self._registry.page(
                caller, device_type_id=request.device_type_id, page_size=size, page_token=str(after or "")
            )
        now_us = self._clock.now_us()
        twins = [self._fleet.twin(caller.tenant, device) for device in page.devices]
        return contract.ListTwinsResponse(
            twins=[messages.twin_message(twin, now_us) for twin in twins],
            next_page_token=paging.encode(question, page.after) if page.after else "",
        )

    async def QueryHistory(
        self, request: contract.QueryHistoryRequest, context: Any
    ) -> contract.QueryHistoryResponse:
        caller = current_principal()
        tenant = caller.tenant
        start, end = time_bound(request, "start_time"), time_bound(request, "end_time")
        question = [request.id, sorted(request.metrics), start, end, request.include_quality]
        after = paging.decode(question, request.page_token)
        bookmark = None if after is None else bookmark_from_json(after)
        span = (
            time_range(start, end, now_us=self._clock.now_us(), future_us=self._future_us)
            if bookmark is None
            else bookmark.range
        )
        await self._registry.get(caller, request.id)
        async with self._tenant_snapshot(tenant) as connection:
            series = await find_series(
                connection, tenant=tenant, device_ids=[request.id], metrics=request.metrics
            )
            page = await read_history(
                connection,
                series,
                HistoryQuestion(span.start_us, span.end_us, with_quality=request.include_quality),
                position=bookmark.position if bookmark else None,
                limit=paging.page_size(
                    request.page_size,
                    default=_SAMPLES_PER_PAGE,
                    maximum=_MOST_JUDGED_SAMPLES if request.include_quality else _MOST_SAMPLES,
                ),
                archive=self._archive,
            )
            placements = await read_placements(
                connection,
                tenant=tenant,
                device_id=request.id,
                start_us=span.start_us,
                end_us=span.end_us,
                limit=_MOST_PLACEMENTS,
            )
        token = (
            paging.encode(question, bookmark_to_json(Bookmark(span, page.position))) if page.position else ""
        )
        return contract.QueryHistoryResponse(
            metrics=[messages.history_message(history) for history in page.histories],
            next_page_token=token,
            placements=map(messages.placement_message, placements),
        )

    async def WatchTwins(self, request: contract.WatchTwinsRequest, context: Any) -> AsyncIterator[Any]:
        resumed = tokens.decode(request.resume_token) if request.resume_token else None
        resume_token = ""
        has_begun = False
        try:
            async with self._watches.open(
                current_call(),
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


class EventServicer(event_contract_grpc.EventServiceServicer):
    """Serves events from the telemetry store.

    Args:
        registry: which devices a tenant has.
        assets: what is part of an asset.
        tenant_snapshot: opens a REPEATABLE READ transaction that sees one tenant.
    """

    def __init__(
        self,
        *,
        registry: DeviceRegistry,
        assets: AssetSource,
        tenant_snapshot: Callable[[str], AbstractAsyncContextManager[Connection]],
    ) -> None:
        self._registry = registry
        self._assets = assets
        self._tenant_snapshot = tenant_snapshot

    async def ListEvents(
        self, request: event_contract.ListEventsRequest, context: Any
    ) -> event_contract.ListEventsResponse:
        caller = current_principal()
        tenant = caller.tenant
        start, end = time_bound(request, "start_time"), time_bound(request, "end_time")
        span = event_range(start, end)
        question = [
            request.device_id,
            request.asset_id,
            request.include_descendants,
            sorted(request.types),
            request.minimum_severity,
            start,
            end,
        ]
        after = paging.decode(question, request.page_token)
        place = first_place(span) if after is None else place_from_json(after)
        size = paging.page_size(request.page_size, default=_EVENTS_PER_PAGE, maximum=_MOST_EVENTS)
        if request.asset_id:
            # Whether there is such an asset is nothing to who is bound to devices.
            require_unbound(caller, method="ListEvents by asset_id")
        if request.device_id:
            await self._registry.get(caller, request.device_id)
        wanted = EventFilter(
            device_id=request.device_id or None,
            asset_ids=await wanted_assets(
                self._assets, tenant, request.asset_id, descendants=request.include_descendants
            ),
            types=request.types or None,
            severity=request.minimum_severity,
            start_us=span.start_us,
            device_ids=None if request.device_id else await self._registry.all_bound(caller),
        )
        async with self._tenant_snapshot(tenant) as connection:
            found = await read_newest(
                connection,
                tenant=tenant,
                wanted=wanted,
                before=(place.time_us, place.event_id),
                limit=size + 1,
            )
        page = found[:size]
        return event_contract.ListEventsResponse(
            events=[messages.event_message(stored) for stored in page],
            next_page_token=paging.encode(question, [page[-1].event.time_us, page[-1].event_id])
            if len(found) > size
            else "",
        )
