"""Samples on their last steps before they are stored: their quality, judged for a whole group at once.

The writer calls it from the threads that prepare rows, on merged runs (docs/adr/0011).
"""

import asyncio
import threading
from collections import deque
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import structlog

from ingest_svc.profile import MetricProfile
from ingest_svc.quality import judge
from ingest_svc.series_states import KnownSeries, SeriesStates
from meshkit.errors import Unavailable
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.merge import Runs
from telemetry_store.quality import Codes
from telemetry_store.series import SeriesKey

_log = structlog.get_logger()
_SAVED_EVERY_S = 10.0
# Of a million series that change all the time each is saved every few minutes.
_SAVED_AT_ONCE = 20_000


class StateStore(Protocol):
    """Where states of series are saved."""

    async def load(self, tenant: str, series_ids: Sequence[int]) -> dict[int, Sequence[float]]:
        """Return the states that were saved, by series id.

        Raises:
            Unavailable: nobody can tell now.
        """
        ...

    async def save(self, states: Sequence[tuple[str, int, Sequence[float]]]) -> None:
        """Save states, each with its tenant and series id.

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
        self._states = states or SeriesStates()
        # The states are used by one thread at a time; what is to be known waits for the next.
        self._lock = threading.Lock()
        self._to_know: deque[KnownSeries] = deque()

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
        found = [(series_id, metric.quality) for series_id, metric in zip(ids.tolist(), metrics, strict=True)]
        known = {series_id: self._states.rules_of(series_id) for series_id, _ in found}
        new = [series_id for series_id, rules in known.items() if rules is None]
        saved = await self._saved(tenant, new) if new else {}
        self._to_know.extend(
            KnownSeries(series_id, tenant, rules, saved.get(series_id))
            for series_id, rules in found
            if known[series_id] != rules
        )
        return ids

    def judge(self, runs: Runs, received_us: npt.NDArray[np.int64]) -> Codes:
        """Judge samples, as telemetry_store.batch.Judge says."""
        with self._lock:
            self._know()
            slots = self._states.meet(runs.series)
            return judge(runs, slots, self._states, received_us=received_us[runs.origins])

    async def keep_saving(self) -> None:
        """Save what is remembered, every few seconds, until it is cancelled."""
        while True:
            await asyncio.sleep(_SAVED_EVERY_S)
            await self.save()

    async def save(self) -> None:
        """Save what has changed since it was saved last, as far as it is not too much at once."""
        with self._lock:
            changed = self._states.take_changed(_SAVED_AT_ONCE)
        try:
            if changed:
                await self._store.save(changed)
        except Unavailable as error:
            _log.warning("states of series are not saved", series=len(changed), error=str(error))

    def _know(self) -> None:
        waiting = len(self._to_know)
        if waiting:
            self._states.know([self._to_know.popleft() for _ in range(waiting)])

    async def _saved(self, tenant: str, series_ids: Sequence[int]) -> dict[int, Sequence[float]]:
        try:
            return await self._store.load(tenant, series_ids)
        except Unavailable:
            return {}
