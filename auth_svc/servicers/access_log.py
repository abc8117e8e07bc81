"""Envoy's AccessLogService: what the gateway has refused becomes part of the audit."""

import asyncio
from collections.abc import AsyncIterator

from auth_svc.refusals import Refusal, refusal
from envoy_api import access_log_pb2 as pb
from envoy_api import access_log_pb2_grpc
from meshkit.audit import AuditTrail


class AccessLogServicer(access_log_pb2_grpc.AccessLogServiceServicer):
    """Serves envoy.service.accesslog.v3.AccessLogService.

    Args:
        trail: takes what was refused.
    """

    def __init__(self, *, trail: AuditTrail) -> None:
        self._trail = trail
        self._is_ending = asyncio.Event()

    async def StreamAccessLogs(
        self, request_iterator: AsyncIterator[pb.StreamAccessLogsMessage], context: object
    ) -> pb.StreamAccessLogsResponse:
        """Take refusals until Envoy, or this process, ends."""
        taking = asyncio.create_task(self._take(request_iterator))
        ending = asyncio.create_task(self._is_ending.wait())
        try:
            await asyncio.wait({taking, ending}, return_when=asyncio.FIRST_COMPLETED)
            if taking.done():
                taking.result()
        finally:
            for task in (taking, ending):
                task.cancel()
            await asyncio.gather(taking, ending, return_exceptions=True)
        return pb.StreamAccessLogsResponse()

    async def drain(self) -> None:
        """Let Envoy go, which keeps its stream open for ever, to send the rest elsewhere."""
        self._is_ending.set()

    async def _take(self, messages: AsyncIterator[pb.StreamAccessLogsMessage]) -> None:
        async for message in messages:
            for entry in message.http_logs.log_entry:
                self._trail.take(_refusal(entry))


def _refusal(entry: pb.HTTPAccessLogEntry) -> Refusal:
    common = entry.common_properties
    return refusal(
        {name: value.decode(errors="replace") for name, value in common.custom_tags.items()},
        http_status=entry.response.response_code.value,
        time_us=common.start_time.ToMicroseconds(),
        duration_us=common.duration.ToMicroseconds(),
    )
