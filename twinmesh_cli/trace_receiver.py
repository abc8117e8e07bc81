"""A small OTLP/gRPC receiver for machines without a collector: keeps recent spans for `twinmesh trace`.

Run as `python -m twinmesh_cli.trace_receiver`. Metrics and logs are not collected here:
their services are not offered, so that exporters hear UNIMPLEMENTED instead of a promise.
"""

import asyncio
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.common.v1 import common_pb2
from opentelemetry.proto.trace.v1 import trace_pb2
from pydantic import Field, ValidationError

from meshkit.config import Settings
from meshkit.telemetry import configure_logging
from twinmesh_cli.traces import Link, Span, TraceStore

_DRAIN_SECONDS = 1.0
_OPTIONS = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)]


class ReceiverSettings(Settings):
    """What the receiver is told."""

    listen: str = Field("127.0.0.1:4317", description="Address of the OTLP/gRPC receiver, host:port.")
    traces: Path = Field(description="SQLite file for spans.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level logged.")


class TraceServicer(trace_service_pb2_grpc.TraceServiceServicer):
    """OTLP's TraceService."""

    def __init__(self, store: TraceStore) -> None:
        self._store = store
        self._writing = asyncio.Lock()

    async def Export(  # noqa: N802 - the rpc's name in its contract.
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        """Stores the spans before it answers."""
        spans = list(spans_of(request.resource_spans))
        async with self._writing:
            await asyncio.to_thread(self._store.add, spans)
        return trace_service_pb2.ExportTraceServiceResponse()


def spans_of(resource_spans: Iterable[trace_pb2.ResourceSpans]) -> Iterable[Span]:
    """The spans of an export, each with its service's name."""
    for resource in resource_spans:
        service = str(_attributes(resource.resource.attributes).get("service.name", "unknown"))
        for scope in resource.scope_spans:
            for span in scope.spans:
                yield Span(
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex(),
                    service=service,
                    name=span.name,
                    start_ns=span.start_time_unix_nano,
                    end_ns=span.end_time_unix_nano,
                    failed=span.status.code == trace_pb2.Status.STATUS_CODE_ERROR,
                    attributes=_attributes(span.attributes),
                    links=tuple(Link(link.trace_id.hex(), link.span_id.hex()) for link in span.links),
                )


def _attributes(pairs: Iterable[common_pb2.KeyValue]) -> dict[str, object]:
    return {pair.key: _value(pair.value) for pair in pairs}


def _value(value: common_pb2.AnyValue) -> object:
    kind = value.WhichOneof("value")
    match kind:
        case None:
            return None
        case "array_value":
            return [_value(each) for each in value.array_value.values]
        case "kvlist_value":
            return _attributes(value.kvlist_value.values)
        case "bytes_value":
            return value.bytes_value.hex()
        case _:
            plain: object = getattr(value, kind)
            return plain


async def _serve(settings: ReceiverSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with TraceStore.writing(settings.traces) as store:
        server = grpc.aio.server(options=_OPTIONS)
        add_traces: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add_traces(TraceServicer(store), server)
        health_servicer = health.aio.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
        server.add_insecure_port(settings.listen)
        await server.start()
        await health_servicer.set("", health_pb2.HealthCheckResponse.SERVING)
        await stop.wait()
        await server.stop(_DRAIN_SECONDS)


def main() -> None:
    """Serves until SIGTERM or SIGINT."""
    try:
        settings = ReceiverSettings()
    except ValidationError as error:
        sys.exit(str(error))
    configure_logging("traces", settings.log_level)
    asyncio.run(_serve(settings))


if __name__ == "__main__":
    main()
