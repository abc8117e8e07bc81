"""Traces by OTLP and structured logs that carry trace, tenant and principal. Metrics: meshkit/metrics.py."""

import logging
import re
import sys
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

import grpc
import structlog
from opentelemetry import context, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased

from meshkit.identity import principal_or_none
from meshkit.policy import HEALTH

tracer = trace.get_tracer("twinmesh")
_MAX_LINKS = 4096  # A commit's span links to every batch that it carries.
_TRACEPARENT = re.compile("[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")
# Without the frames' variables: requests hold passwords and tokens.
_render_exception = structlog.processors.ExceptionRenderer(
    structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
)


def deserves_span(details: grpc.HandlerCallDetails) -> bool:
    """Say whether a call gets a span of its own.

    Health checks do not, nor calls of traces that the caller does not record: an
    instrumented call costs a quarter of a millisecond.
    """
    if details.method.startswith(HEALTH):
        return False
    traceparent = _traceparent(details.invocation_metadata)
    return not traceparent or int(traceparent[-2:], 16) & trace.TraceFlags.SAMPLED != 0


def join_trace(metadata: Iterable[tuple[str, str | bytes]]) -> None:
    """Stand in the caller's trace for the rest of this context, when no span does already.

    So logs name the trace, and calls to other services go on in it, recorded or not.
    """
    if trace.get_current_span().get_span_context().is_valid:
        return
    caller = remote_span(_traceparent(metadata))
    if caller is not None:
        context.attach(trace.set_span_in_context(trace.NonRecordingSpan(caller)))


def remote_span(traceparent: str) -> trace.SpanContext | None:
    """Return the span that a W3C trace context names, None when it has not the form of one."""
    if not _TRACEPARENT.fullmatch(traceparent):
        return None
    _, trace_id, span_id, flags = traceparent.split("-")
    return trace.SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=trace.TraceFlags(int(flags, 16))
    )


def _traceparent(metadata: Iterable[tuple[str, str | bytes]]) -> str:
    """Return the W3C trace context of a call, "" when there is none of the form it should have."""
    for name, value in metadata:
        if name == "traceparent" and isinstance(value, str) and _TRACEPARENT.fullmatch(value):
            return value
    return ""


def current_trace_id() -> str:
    """Return the hexadecimal id of the present trace, "" outside of any."""
    present = trace.get_current_span().get_span_context()
    return trace.format_trace_id(present.trace_id) if present.is_valid else ""


def _add_context(_logger: object, _name: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    trace_id = current_trace_id()
    if trace_id:
        event["trace_id"] = trace_id
    principal = principal_or_none()
    if principal is not None:
        event.setdefault("tenant", principal.tenant)
        event["principal"] = principal.name
    return event


def configure_logging(service: str, level: str) -> None:
    """Write one JSON object per line to standard error, also for libraries' logs."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        _add_context,
        structlog.processors.EventRenamer("message"),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelName(level)),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                _render_exception,
                structlog.processors.JSONRenderer(),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(logging.getLevelName(level), logging.INFO))
    structlog.contextvars.bind_contextvars(service=service)


def resource_of(service: str) -> Resource:
    """Return what this process calls itself; each start has a service.instance.id of its own."""
    return Resource.create({"service.name": service, "service.namespace": "twinmesh"})


@contextmanager
def tracing(service: str, *, endpoint: str, sample_ratio: float) -> Iterator[None]:
    """Export spans by OTLP/gRPC while the context is open; an empty endpoint exports none.

    Args:
        service: name of the service in traces.
        endpoint: "http://host:port" of an OTLP/gRPC receiver.
        sample_ratio: share of traces that begin here to record, 0 to 1; a trace that
            began outside is recorded when its caller records it.
    """
    if not endpoint:
        yield
        return
    provider = TracerProvider(
        resource=resource_of(service),
        sampler=ParentBased(TraceIdRatioBased(sample_ratio)),
        span_limits=SpanLimits(max_links=_MAX_LINKS),
    )
    provider.add_span_processor(
        BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, insecure=True), schedule_delay_millis=500)
    )
    trace.set_tracer_provider(provider)
    try:
        yield
    finally:
        provider.shutdown()
