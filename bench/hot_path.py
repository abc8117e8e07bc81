"""`bench hot_path`: what each step between the wire, COPY and announcement costs by itself."""

import time
from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
import uvloop

from bench import raw_copy
from bench.gateway_batches import SeriesLoad
from bench.report import Case, Report
from ingest_svc.columns import assess, check, digest, require_known
from ingest_svc.conversion import to_columns
from ingest_svc.profile import DeviceProfile, MetricProfile, QualityRules
from ingest_svc.quality import judge
from ingest_svc.series_states import KnownSeries, SeriesStates
from ingest_svc.series_table import SeriesDefinition, SeriesTable
from ingest_svc.window import TimeWindow
from meshkit.testing.mesh import own_mesh
from telemetry_store import announcement
from telemetry_store.columns import MICROS_PER_HOUR, Kind
from telemetry_store.commit_numbers import CommitNumbers
from telemetry_store.copy import encode
from telemetry_store.merge import Runs, latest, merge
from telemetry_store.quality import Codes
from twinmesh.ingest.v1 import ingest_service_pb2

STREAMS = 4
SERIES = 2_000
GROUP_SAMPLES = 500_000
ROUNDS = 9
COPIED_GROUPS = 8
ANNOUNCED_BYTES = 512 * 1024  # Half of the bus's payload limit.
_RUN_LENGTHS = {"run20": 20, "run1": 1}


def run() -> Report:
    """Measure and return the report."""
    # The start of an hour: no run is cut.
    start_us = time.time_ns() // 1000 // MICROS_PER_HOUR * MICROS_PER_HOUR
    cases: list[Case] = []
    with own_mesh(TWINMESH_TRACE_SAMPLE_RATIO="0") as mesh:
        for name, run_length in _RUN_LENGTHS.items():
            batches = GROUP_SAMPLES // (SERIES * run_length)
            loads = _loads(run_length, start_us)
            groups = raw_copy.groups(loads, batches_per_group=batches, count=COPIED_GROUPS)
            copied_s = uvloop.run(raw_copy.copy(mesh.database_url(), groups))
            copied = COPIED_GROUPS * batches * SERIES * run_length
            cases += stages(name, run_length, start_us)
            cases.append(Case(f"{name}: COPY and COMMIT alone", copied_s / copied * 1e9, "ns/sample"))
    notes = [
        f"best of {ROUNDS}; {SERIES} series a batch, groups of {GROUP_SAMPLES} samples of {STREAMS} streams"
    ]
    return Report("hot_path", cases, notes)


def _loads(run_length: int, start_us: int) -> list[SeriesLoad]:
    return [SeriesLoad(SERIES, run_length, SERIES, start_us) for _ in range(STREAMS)]


def stages(name: str, run_length: int, start_us: int) -> list[Case]:
    """Return what each step costs that needs no other process, ns per sample.

    Args:
        name: of the case.
        run_length: samples of a series in a batch.
        start_us: time of the first sample, the start of an hour.
    """
    [wire] = _loads(run_length, start_us)[0].batches(1)
    request = ingest_service_pb2.StreamTelemetryRequest.FromString(wire)
    columns = to_columns(request.batch.columns)
    table = _table()
    window = TimeWindow("all", start_us - MICROS_PER_HOUR, start_us + MICROS_PER_HOUR)
    rounds = GROUP_SAMPLES // (SERIES * run_length) // STREAMS
    loads = _loads(run_length, start_us)
    streams = [load.columns(rounds, first_series=1 + place * SERIES) for place, load in enumerate(loads)]
    parts = list(chain.from_iterable(zip(*streams, strict=True)))
    merged, tenants = merge(parts), ["demo"] * len(parts)
    judged = replace(merged, quality=_judge(merged, start_us))
    numbers, announced = CommitNumbers(1, 1, 1), [("demo", latest(merged)[0])]

    def accept() -> None:
        require_known(columns, table)
        check(columns, table)
        assess(columns, table, window=window, all_or_nothing=False)

    batch, group = len(columns.times), sum(map(len, parts))
    steps: list[tuple[str, Callable[[], object], int]] = [
        ("parse", lambda: ingest_service_pb2.StreamTelemetryRequest.FromString(wire), batch),
        ("decode", lambda: to_columns(request.batch.columns), batch),
        ("check and assess", accept, batch),
        ("digest", lambda: digest(columns, table, all_or_nothing=False), batch),
        ("merge", lambda: merge(parts), group),
        ("quality and anomalies", lambda: _judge(merged, start_us), group),
        ("build rows", lambda: encode([(judged, tenants)]), group),
        ("latest of each series", lambda: latest(merged), group),
        (
            "announce",
            lambda: announcement.encode(numbers, announced, traceparent="", max_bytes=ANNOUNCED_BYTES),
            group,
        ),
    ]
    return [
        Case(f"{name}: {step}", _best_s(work) / samples * 1e9, "ns/sample") for step, work, samples in steps
    ]


def _judge(runs: Runs, now_us: int) -> Codes:
    """Judge by rules that all have something to look at, of series that a state is known of."""
    return judge(runs, _STATES.meet(runs.series), _STATES, received_us=np.full(len(runs.series), now_us))


def _known() -> SeriesStates:
    rules = QualityRules(minimum=-1e9, maximum=1e9, interval_us=MICROS_PER_HOUR, max_rate=1e9)
    states = SeriesStates()
    states.know(
        [KnownSeries(number, "demo", "pump", "m", rules) for number in range(1, STREAMS * SERIES + 1)]
    )
    return states


_STATES = _known()


def _table() -> SeriesTable:
    """Return a table of series that are all taken."""
    table = SeriesTable()
    table.define(
        [(alias, SeriesDefinition("pump", f"metric-{alias}", Kind.DOUBLE, "")) for alias in range(SERIES)]
    )
    table.outdate(version=0, now_us=time.time_ns() // 1000)
    aliases = table.unresolved(SERIES)
    metrics = {f"metric-{alias}": MetricProfile(Kind.DOUBLE, "") for alias in aliases}
    good = list(table.judge(aliases, {"pump": DeviceProfile("pump", enabled=True, metrics=metrics)}))
    table.settle(aliases, good, np.array(good, dtype=np.int32) + 1)
    return table


def _best_s(work: Callable[[], object]) -> float:
    taken = []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        work()
        taken.append(time.perf_counter() - began)
    return min(taken)
