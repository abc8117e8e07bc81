"""Metrics by OTLP: where instruments come from, and how what they measured leaves the process.

A service's instruments stand in its `metrics.py`, and docs/metrics.md lists them all. The parts that
are measured know nothing of them: they count in plain attributes, which are read when it is time to
export, and tell of what has a distribution through a callable that `app.py` gives them.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

from opentelemetry.exporter.otlp.proto.grpc.metric_exporter import OTLPMetricExporter
from opentelemetry.metrics import (
    CallbackOptions,
    CallbackT,
    Meter,
    MeterProvider,
    NoOpMeterProvider,
    Observation,
)
from opentelemetry.sdk.metrics import MeterProvider as SdkMeterProvider
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from meshkit.audit import AuditTrail
from meshkit.connections import Connections
from meshkit.lookups import Lookups
from meshkit.telemetry import resource_of

# What was measured last is worth no long wait for a receiver that is away.
_SHUTDOWN_MS = 2_000
_NOWHERE = NoOpMeterProvider()
# Not the API's own global: that can be set once in a process, which tests do not want.
_provider: ContextVar[MeterProvider] = ContextVar("meter_provider", default=_NOWHERE)


def meter() -> Meter:
    """Return what instruments are made with; without anybody to export to they do nothing."""
    return _provider.get().get_meter("twinmesh")


@contextmanager
def metered(provider: MeterProvider) -> Iterator[None]:
    """Let `meter` make instruments of a provider while the context is open."""
    token = _provider.set(provider)
    try:
        yield
    finally:
        _provider.reset(token)


@contextmanager
def metering(service: str, *, endpoint: str, interval_ms: int) -> Iterator[None]:
    """Export metrics by OTLP/gRPC while the context is open, and once more at its end.

    Args:
        service: name of the service in metrics.
        endpoint: "http://host:port" of an OTLP/gRPC receiver; an empty one exports nothing.
        interval_ms: time between two exports, milliseconds.
    """
    if not endpoint:
        yield
        return
    reader = PeriodicExportingMetricReader(
        OTLPMetricExporter(endpoint=endpoint, insecure=True), export_interval_millis=interval_ms
    )
    provider = SdkMeterProvider(metric_readers=[reader], resource=resource_of(service))
    try:
        with metered(provider):
            yield
    finally:
        provider.shutdown(timeout_millis=_SHUTDOWN_MS)


def reading(read: Callable[[], float]) -> Sequence[CallbackT]:
    """Return the callbacks of an observable instrument without attributes.

    Args:
        read: returns the present value; called by the exporting thread, so it must not walk what changes.
    """

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        return [Observation(read())]

    return [observe]


def observe_caches(meter: Meter, **caches: Lookups) -> None:
    """Export the lookups of a service's caches, each under its name."""

    def observe(_: CallbackOptions) -> Iterable[Observation]:
        for name, lookups in caches.items():
            yield Observation(lookups.hits, {"cache": name, "result": "hit"})
            yield Observation(lookups.misses, {"cache": name, "result": "miss"})

    meter.create_observable_counter(
        "twinmesh.cache.lookups",
        [observe],
        unit="{lookup}",
        description="What was looked up in a cache.",
    )


def observe_connections(meter: Meter, *connections: Connections) -> None:
    """Export how many connections of tenants are open."""
    meter.create_observable_up_down_counter(
        "twinmesh.connections",
        reading(lambda: sum(map(len, connections))),
        unit="{connection}",
        description="Open connections of tenants.",
    )


def observe_audit(meter: Meter, *trails: AuditTrail) -> None:
    """Export how many audit events a process has lost."""
    meter.create_observable_counter(
        "twinmesh.audit.lost",
        reading(lambda: sum(trail.lost for trail in trails)),
        unit="{event}",
        description="Audit events that nobody took.",
    )
