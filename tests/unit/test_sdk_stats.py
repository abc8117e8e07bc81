"""The gateway client's metrics are its stats."""

import subprocess
import sys

_PROGRAM = """
from opentelemetry import metrics
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

import twinmesh_client
from twinmesh_client.spool import Backlog
from twinmesh_client.stats import Counters, Observed, observe

# As a program does that sets its telemetry up after its imports.
reader = InMemoryMetricReader()
metrics.set_meter_provider(MeterProvider([reader]))
counters = Counters(refused_samples=2, dropped_samples=3, streams=5, throttles=6)
client = Observed("line-4", lambda: counters.snapshot(
    buffered_samples=7, backlog=Backlog(first=2, end=10, size=9, oldest_us=None), durable_samples=10,
    stopped="Fenced: by another one"))
observe(client)
for metric in reader.get_metrics_data().resource_metrics[0].scope_metrics[0].metrics:
    (point,) = metric.data.data_points
    print(metric.name, metric.unit, point.value, dict(point.attributes)["gateway"])
del client
print(reader.get_metrics_data())
"""


def test_metrics_are_those_of_the_clients_that_live() -> None:
    done = subprocess.run([sys.executable, "-c", _PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "twinmesh.gateway.connected 1 0.0 line-4",
        "twinmesh.gateway.buffered_samples {sample} 7.0 line-4",
        "twinmesh.gateway.backlog_batches {batch} 8.0 line-4",
        "twinmesh.gateway.backlog_bytes By 9.0 line-4",
        "twinmesh.gateway.oldest_age s 0.0 line-4",
        "twinmesh.gateway.durable_samples {sample} 10.0 line-4",
        "twinmesh.gateway.refused_samples {sample} 2.0 line-4",
        "twinmesh.gateway.dropped_samples {sample} 3.0 line-4",
        "twinmesh.gateway.reconnects {reconnect} 4.0 line-4",
        "twinmesh.gateway.throttles {throttle} 6.0 line-4",
        "twinmesh.gateway.stopped 1 1.0 line-4",
        "None",
    ]
