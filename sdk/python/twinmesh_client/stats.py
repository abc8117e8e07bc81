"""What a client did and what waits, as a snapshot and as OpenTelemetry metrics."""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from weakref import WeakSet

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, Observation

from twinmesh_client.spool import Backlog


@dataclass(frozen=True, slots=True)
class Stats:
    """A moment of a client. Counts begin with the client, backlogs include what the spool held before.

    Attributes:
        connected: whether a stream is open.
        buffered_samples: in memory, not yet in the spool.
        backlog_batches: in the spool, not yet durable at the server.
        backlog_bytes: their size.
        oldest_age_s: how long the oldest of them has been there, in seconds.
        durable_samples: stored by the server.
        refused_samples: refused by the server for good.
        dropped_samples: given up to make room; some of them may have been stored.
        reconnects: streams opened after the first one.
        throttles: how often the server asked to wait.
        stopped: the error that stopped the client, empty without one.
    """

    connected: bool
    buffered_samples: int
    backlog_batches: int
    backlog_bytes: int
    oldest_age_s: float
    durable_samples: int
    refused_samples: int
    dropped_samples: int
    reconnects: int
    throttles: int
    stopped: str


@dataclass(slots=True)
class Counters:
    """What one client counts."""

    connected: bool = False
    refused_samples: int = 0
    dropped_samples: int = 0
    streams: int = 0
    throttles: int = 0

    def snapshot(
        self, *, buffered_samples: int, backlog: Backlog, durable_samples: int, stopped: str
    ) -> Stats:
        """Return the moment's numbers."""
        age_s = 0.0 if backlog.oldest_us is None else max(0.0, time.time() - backlog.oldest_us / 1e6)
        return Stats(
            connected=self.connected,
            buffered_samples=buffered_samples,
            backlog_batches=backlog.batches,
            backlog_bytes=backlog.size,
            oldest_age_s=age_s,
            durable_samples=durable_samples,
            refused_samples=self.refused_samples,
            dropped_samples=self.dropped_samples,
            reconnects=max(0, self.streams - 1),
            throttles=self.throttles,
            stopped=stopped,
        )


class Observed:
    """A client as its metrics see it.

    Args:
        name: the gateway's; the attribute `gateway` of its measurements.
        stats: returns its moment.
    """

    def __init__(self, name: str, stats: Callable[[], Stats]) -> None:
        self.name = name
        self.stats = stats


# Instruments belong to the process, clients come and go.
_observed: WeakSet[Observed] = WeakSet()
_UNITS = {
    "connected": "1",
    "buffered_samples": "{sample}",
    "backlog_batches": "{batch}",
    "backlog_bytes": "By",
    "oldest_age_s": "s",
    "stopped": "1",
}


def observe(client: Observed) -> None:
    """Show a client in the metrics for as long as it lives."""
    _observed.add(client)


def _callback(field: str) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def measure(_options: CallbackOptions) -> Iterable[Observation]:
        for client in list(_observed):
            value = getattr(client.stats(), field)
            # Why a client stopped is no number, only that it did.
            number = float(bool(value) if isinstance(value, str) else value)
            yield Observation(number, {"gateway": client.name})

    return measure


def _make_instruments() -> None:
    meter = metrics.get_meter("twinmesh_client")
    for field in fields(Stats):
        name = f"twinmesh.gateway.{field.name.removesuffix('_s')}"
        if field.name in _UNITS:
            meter.create_observable_gauge(name, [_callback(field.name)], unit=_UNITS[field.name])
        else:
            unit = f"{{{field.name.rpartition('_')[2].rstrip('s')}}}"
            meter.create_observable_counter(name, [_callback(field.name)], unit=unit)


_make_instruments()
