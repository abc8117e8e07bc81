"""A small OTLP/gRPC receiver for machines without a collector.

It keeps recent spans for `twinmesh trace`, and the newest values of metrics for `twinmesh metrics`. Run as
`python -m twinmesh_cli.otlp_receiver`. Logs are not collected here: their service is not offered,
so that exporters hear UNIMPLEMENTED instead of a promise.
"""

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from opentelemetry.proto.collector.metrics.v1 import metrics_service_pb2, metrics_service_pb2_grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from pydantic import Field, ValidationError

from meshkit.config import Settings
from meshkit.telemetry import configure_logging
from twinmesh_cli.metric_store import MetricStore
from twinmesh_cli.otlp import series_of, spans_of
from twinmesh_cli.traces import TraceStore

_DRAIN_SECONDS = 1.0
_OPTIONS = [("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 64 * 1024 * 1024)]


class ReceiverSettings(Settings):
    """What the receiver is told."""

    listen: str = Field("127.0.0.1:4317", description="Address of the OTLP/gRPC receiver, host:port.")
    traces: Path = Field(description="SQLite file for spans.")
    metrics: Path = Field(description="SQLite file for values of metrics.")
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


class MetricsServicer(metrics_service_pb2_grpc.MetricsServiceServicer):
    """OTLP's MetricsService."""

    def __init__(self, store: MetricStore) -> None:
        self._store = store
        self._writing = asyncio.Lock()

    async def Export(  # noqa: N802 - the rpc's name in its contract.
        self, request: metrics_service_pb2.ExportMetricsServiceRequest, context: Any
    ) -> metrics_service_pb2.ExportMetricsServiceResponse:
        """Stores the values before it answers; tells how many it has no use for."""
        series, refused = series_of(request.resource_metrics)
        async with self._writing:
            await asyncio.to_thread(self._store.add, series)
        answer = metrics_service_pb2.ExportMetricsServiceResponse()
        if refused:
            answer.partial_success.rejected_data_points = refused
            answer.partial_success.error_message = (
                "only gauges, cumulative sums and cumulative histograms with explicit buckets are kept"
            )
        return answer


async def _serve(settings: ReceiverSettings) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with TraceStore.writing(settings.traces) as traces, MetricStore.writing(settings.metrics) as metrics:
        server = grpc.aio.server(options=_OPTIONS)
        add_traces: Any = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
        add_traces(TraceServicer(traces), server)
        add_metrics: Any = metrics_service_pb2_grpc.add_MetricsServiceServicer_to_server
        add_metrics(MetricsServicer(metrics), server)
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
    configure_logging("otlp", settings.log_level)
    asyncio.run(_serve(settings))


if __name__ == "__main__":
    main()
