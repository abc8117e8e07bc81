"""What ingest_svc measures; docs/metrics.md says what for."""

from collections import Counter
from collections.abc import Iterable

from opentelemetry.metrics import Meter

from ingest_svc.announcer import Announcer
from ingest_svc.open_streams import OpenStreams
from ingest_svc.storage_room import StorageRoom
from meshkit.metrics import reading
from telemetry_store.commit import Stored
from telemetry_store.requests import WriteRequest, WriteResult
from telemetry_store.waiting import WaitingBatches
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2

# Seconds; an fsync takes 0.1 ms to 10 ms, a full group some hundred more.
_DURATIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)
_SAMPLES = (1, 10, 100, 1_000, 10_000, 50_000, 100_000, 200_000, 500_000, 1_000_000)
_BATCHES = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 2_000, 4_096)


class IngestMetrics:
    """Instruments of ingest_svc.

    Args:
        meter: makes them.
    """

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self._samples = meter.create_counter(
            "twinmesh.ingest.samples",
            unit="{sample}",
            description="Samples that were decided about for good.",
        )
        self._limited = meter.create_counter(
            "twinmesh.ingest.limited",
            unit="{batch}",
            description="Batches, requests and streams that were sent back because of a tenant's limit.",
        )
        self._events = meter.create_counter(
            "twinmesh.ingest.events",
            unit="{event}",
            description="Events that were decided about for good.",
        )
        self._dead_letters = meter.create_counter(
            "twinmesh.ingest.dead_letters",
            unit="{letter}",
            description="Dead letters that were kept.",
        )
        self._commit_duration = meter.create_histogram(
            "twinmesh.ingest.commit.duration",
            unit="s",
            description="Time of a commit's transaction.",
            explicit_bucket_boundaries_advisory=_DURATIONS,
        )
        self._commit_samples = meter.create_histogram(
            "twinmesh.ingest.commit.samples",
            unit="{sample}",
            description="Samples of a commit.",
            explicit_bucket_boundaries_advisory=_SAMPLES,
        )
        self._commit_batches = meter.create_histogram(
            "twinmesh.ingest.commit.batches",
            unit="{batch}",
            description="Batches of a commit.",
            explicit_bucket_boundaries_advisory=_BATCHES,
        )

    def observe(
        self, *, waiting: WaitingBatches, announcer: Announcer, streams: OpenStreams, room: StorageRoom
    ) -> None:
        """Export what these tell of themselves, from now on."""
        meter = self._meter
        meter.create_observable_up_down_counter(
            "twinmesh.ingest.queue.batches",
            reading(lambda: len(waiting)),
            unit="{batch}",
            description="Batches that wait for their answers.",
        )
        meter.create_observable_up_down_counter(
            "twinmesh.ingest.queue.samples",
            reading(lambda: waiting.samples),
            unit="{sample}",
            description="Samples of the batches that wait.",
        )
        meter.create_observable_up_down_counter(
            "twinmesh.ingest.queue.bytes",
            reading(lambda: waiting.bytes),
            unit="By",
            description="Memory of the batches that wait.",
        )
        meter.create_observable_up_down_counter(
            "twinmesh.ingest.announcer.queue.bytes",
            reading(lambda: announcer.waiting_bytes),
            unit="By",
            description="Memory of the commits that wait to be announced.",
        )
        meter.create_observable_counter(
            "twinmesh.ingest.announcer.left_out",
            reading(lambda: announcer.left_out),
            unit="{commit}",
            description="Commits that were not announced.",
        )
        meter.create_observable_up_down_counter(
            "twinmesh.ingest.streams",
            reading(lambda: len(streams)),
            unit="{stream}",
            description="Open gateway streams.",
        )
        meter.create_observable_gauge(
            "twinmesh.ingest.storage_full",
            reading(lambda: int(room.is_full)),
            unit="1",
            description="1 while new data are refused, because PostgreSQL's disk is nearly full.",
        )

    def limited(self, name: str, times: int = 1) -> None:
        """Take in that a limit of this name sent something back, and how often."""
        self._limited.add(times, {"limit": name})

    def group_stored(self, stored: Stored, took_s: float) -> None:
        """Take in a group that went through a transaction of so many seconds."""
        answers = [
            (batch.request, answer)
            for batch, answer in stored.answers.items()
            if isinstance(answer, WriteResult)
        ]
        if stored.commit is not None:
            self._commit_duration.record(took_s)
            self._commit_samples.record(stored.commit.samples)
            self._commit_batches.record(sum(not answer.duplicate for _, answer in answers))
        self._count(answers)
        for (reason, door), letters in stored.dead_letters.items():
            self._dead_letters.add(letters, {"reason": reason, "door": door})

    def _count(self, answers: Iterable[tuple[WriteRequest, WriteResult]]) -> None:
        samples: Counter[tuple[str, str]] = Counter()
        events: Counter[tuple[str, str]] = Counter()
        for request, answer in answers:
            told = ingest_pb2.BatchResult.FromString(answer.outcome)
            if answer.duplicate:
                samples[request.door, "duplicate"] += told.stored_samples + told.refused_samples
                events[request.door, "duplicate"] += told.stored_events + told.refused_events
            else:
                samples[request.door, "stored"] += told.stored_samples
                samples[request.door, "refused"] += told.refused_samples
                events[request.door, "stored"] += told.stored_events
                events[request.door, "refused"] += told.refused_events
        for counter, counts in ((self._samples, samples), (self._events, events)):
            for (door, outcome), count in counts.items():
                if count:
                    counter.add(count, {"door": door, "outcome": outcome})
