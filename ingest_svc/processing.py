"""Samples on their last steps before they are stored: their quality, judged for a whole group at once.

The writer calls it from the threads that prepare rows, on merged runs (docs/adr/0011).
"""

import asyncio
import threading
from collections.abc import Sequence, Set
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from ingest_svc import device_states, series_states
from ingest_svc.profile import MetricProfile, QualityRules
from ingest_svc.quality import judge
from ingest_svc.series_states import KnownSeries, SeriesStates
from meshkit.errors import Unavailable
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.merge import Runs
from telemetry_store.quality import NOT_JUDGED, Codes, constant
from telemetry_store.saved_state import SavedState
from telemetry_store.series import SeriesKey

_log = structlog.get_logger()
_SAVED_EVERY_S = 10.0
# Of a million series that change all the time each is saved every few minutes.
_SAVED_AT_ONCE = 20_000
_SAVED_BYTES_AT_ONCE = 4 * 1024 * 1024  # of devices
# So many series at a time have the lock, for which the event loop may wait.
_LOCKED_SERIES = 1_000


class StateStore(Protocol):
    """Where states of series are saved."""

    async def load(self, tenant: str, detector: str, subjects: Sequence[str]) -> dict[str, bytes]:
        """Return the states that were saved, by subject.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...

    async def save(self, states: Sequence[SavedState]) -> None:
        """Save states.

        Raises:
            Unavailable: they may be saved or not.
        """
        ...


class Processing:
    """Judges samples, and remembers of series what the judgement needs.

    What is remembered is saved now and then and loaded by the process that meets a series first. It is
    best effort: a process that ends may lose the last seconds.

    Args:
        catalog: finds ids of series.
        store: of states.
        states: of this process.
    """

    def __init__(
        self, *, catalog: SeriesCatalog, store: StateStore, states: SeriesStates | None = None
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._states = SeriesStates() if states is None else states
        # The states are used by one thread at a time.
        self._lock = threading.Lock()

    async def resolve(
        self, tenant: str, keys: Sequence[SeriesKey], metrics: Sequence[MetricProfile]
    ) -> npt.NDArray[np.int32]:
        """Return the ids of series, whose samples will be judged by the rules of their metrics.

        Args:
            tenant: whose series.
            keys: in any order.
            metrics: of each.

        Raises:
            Unavailable: DEPENDENCY_UNAVAILABLE.
        """
        ids = await self._catalog.resolve(tenant, keys)
        found = list(zip(ids.tolist(), keys, (metric.quality for metric in metrics), strict=True))
        changed = [each for each in found if self._states.rules_of(each[0]) != each[2]]
        if changed:
            await self._make_known(tenant, changed)
        return ids

    def judge(self, runs: Runs, received_us: npt.NDArray[np.int64]) -> Codes:
        """Judge samples, as telemetry_store.batch.Judge says."""
        try:
            with self._lock:
                slots = self._states.meet(runs.series)
                return judge(runs, slots, self._states, received_us=received_us[runs.origins])
        except Exception:
            # A defect, which must not refuse the samples of all whose batches are in the group.
            _log.exception("samples are not judged", samples=len(runs.times), kind=runs.kind.name)
            return constant(NOT_JUDGED, len(runs.times))

    async def keep_saving(self) -> None:
        """Save what is remembered, every few seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(_SAVED_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Save what has changed since it was saved last, as far as it is not too much at once."""
        changed = await asyncio.to_thread(self._take_changed)
        try:
            if changed:
                await self._store.save(changed)
        except Unavailable as error:
            _log.warning("states of detectors are not saved", states=len(changed), error=str(error))

    async def _make_known(self, tenant: str, found: Sequence[tuple[int, SeriesKey, QualityRules]]) -> None:
        new = {str(series_id) for series_id, _, _ in found if self._states.rules_of(series_id) is None}
        devices = {
            key.device_id
            for _, key, rules in found
            if rules.joint is not None
            and not self._states.devices.knows((tenant, key.device_id), rules.joint)
        }
        saved = await self._saved(tenant, series_states.DETECTOR, new)
        saved_devices = await self._saved(tenant, device_states.DETECTOR, devices)
        known = [
            KnownSeries(
                series_id,
                tenant,
                key.device_id,
                key.metric,
                rules,
                saved.get(str(series_id)),
                saved_devices.get(key.device_id),
            )
            for series_id, key, rules in found
        ]
        # In a thread, since it takes a while when they are many, or while a large group is judged.
        await asyncio.to_thread(self._know, known)

    def _know(self, known: Sequence[KnownSeries]) -> None:
        for first in range(0, len(known), _LOCKED_SERIES):
            with self._lock:
                self._states.know(known[first : first + _LOCKED_SERIES])

    def _take_changed(self) -> list[SavedState]:
        changed: list[SavedState] = []
        for _ in range(0, _SAVED_AT_ONCE, _LOCKED_SERIES):
            with self._lock:
                some = self._states.take_changed(_LOCKED_SERIES)
            changed += some
            if len(some) < _LOCKED_SERIES:
                break
        with self._lock:
            return changed + self._states.devices.take_changed(_SAVED_BYTES_AT_ONCE)

    async def _saved(self, tenant: str, detector: str, subjects: Set[str]) -> dict[str, bytes]:
        if not subjects:
            return {}
        try:
            return await self._store.load(tenant, detector, sorted(subjects))
        except Unavailable:
            return {}
