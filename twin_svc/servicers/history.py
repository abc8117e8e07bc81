"""HistoryService: the contract's side of queries over many series and of exports."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, aclosing
from typing import Any

from google.api import httpbody_pb2

from meshkit import paging
from meshkit.clock import Clock
from meshkit.db import Connection
from meshkit.errors import not_found
from meshkit.exports import file_answer
from meshkit.identity import current_principal
from meshkit.time_bounds import time_bound
from telemetry_store.history import HistoryQuestion, find_series
from telemetry_store.tiers.reader import Archive
from twin_svc import history_messages
from twin_svc.export_formats import CONTENT_TYPES, SUFFIXES, ExportFormat
from twin_svc.exports import Exports
from twin_svc.history import Bookmark, TimeRange, bookmark_from_json, bookmark_to_json, time_range
from twin_svc.registry import DeviceRegistry
from twin_svc.series_query import answer
from twinmesh.twin.v1 import history_service_pb2 as contract
from twinmesh.twin.v1 import history_service_pb2_grpc as contract_grpc

_POINTS_PER_PAGE, _MOST_POINTS = 10_000, 50_000


class HistoryServicer(contract_grpc.HistoryServiceServicer):
    """Serves the past of many devices from the telemetry store.

    Args:
        registry: which devices a tenant has.
        tenant_snapshot: opens a REPEATABLE READ transaction that sees one tenant.
        exports: runs exports.
        clock: tells the present.
        future_us: how far live telemetry may run ahead of now.
        archive: the tier below; None: nothing was ever archived.
    """

    def __init__(
        self,
        *,
        registry: DeviceRegistry,
        tenant_snapshot: Callable[[str], AbstractAsyncContextManager[Connection]],
        exports: Exports,
        clock: Clock,
        future_us: int,
        archive: Archive | None,
    ) -> None:
        self._registry = registry
        self._tenant_snapshot = tenant_snapshot
        self._exports = exports
        self._clock = clock
        self._future_us = future_us
        self._archive = archive

    async def QuerySeries(
        self, request: contract.QuerySeriesRequest, context: Any
    ) -> contract.QuerySeriesResponse:
        caller = current_principal()
        tenant = caller.tenant
        asked = history_messages.asked_json(request)
        after = paging.decode(asked, request.page_token)
        bookmark = None if after is None else bookmark_from_json(after)
        span = self._range(request) if bookmark is None else bookmark.range
        question = history_messages.question(
            request, span, now_us=self._clock.now_us(), future_us=self._future_us
        )
        known = await self._registry.find(caller, request.ids)
        if not known:
            raise not_found("device", request.ids[0])
        async with self._tenant_snapshot(tenant) as connection:
            series = await find_series(
                connection, tenant=tenant, device_ids=sorted(known), metrics=request.metrics
            )
            page = await answer(
                connection,
                series,
                question,
                position=bookmark.position if bookmark else None,
                points=paging.page_size(request.page_size, default=_POINTS_PER_PAGE, maximum=_MOST_POINTS),
                archive=self._archive,
            )
        token = paging.encode(asked, bookmark_to_json(Bookmark(span, page.position))) if page.position else ""
        unknown = [] if bookmark else sorted(set(request.ids) - set(known))
        return history_messages.response(page, request, next_page_token=token, unknown_ids=unknown)

    async def ExportHistory(
        self, request: contract.ExportHistoryRequest, context: Any
    ) -> AsyncIterator[httpbody_pb2.HttpBody]:
        caller = current_principal()
        tenant = caller.tenant
        span = self._range(request)
        known = await self._registry.find(caller, request.ids)
        for device_id in request.ids:
            if device_id not in known:
                raise not_found("device", device_id)
        export_format = ExportFormat(request.format)
        pieces = self._exports.export(
            tenant,
            device_ids=sorted(known),
            metrics=request.metrics,
            question=HistoryQuestion(span.start_us, span.end_us, with_quality=True),
            export_format=export_format,
        )
        name = f"twinmesh-history.{SUFFIXES[export_format]}"
        async with aclosing(
            file_answer(context, pieces, name=name, content_type=CONTENT_TYPES[export_format])
        ) as answers:
            async for each in answers:
                yield each

    def _range(self, request: contract.QuerySeriesRequest | contract.ExportHistoryRequest) -> TimeRange:
        start, end = time_bound(request, "start_time"), time_bound(request, "end_time")
        return time_range(start, end, now_us=self._clock.now_us(), future_us=self._future_us)
