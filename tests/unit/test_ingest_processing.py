"""Samples on their last steps: what is known of series, and what a defect may do."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest

from ingest_svc import processing as module
from ingest_svc.processing import Processing
from ingest_svc.profile import MetricProfile, QualityRules
from ingest_svc.series_states import SeriesStates
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.merge import merge
from telemetry_store.quality import NOT_JUDGED, PERFECT
from telemetry_store.saved_state import SavedState
from telemetry_store.series import SeriesKey

NOW = 1_700_000_000_000_000
RULES = QualityRules(minimum=0.0)
METRIC = MetricProfile(Kind.DOUBLE, "", quality=RULES)


class Catalog:
    """Numbers series by their metrics' names."""

    async def resolve(self, tenant: str, keys: Sequence[SeriesKey]) -> npt.NDArray[np.int32]:
        return np.array([int(key.metric[1:]) for key in keys], np.int32)


class Store:
    """Keeps what is saved."""

    def __init__(self) -> None:
        self.saved: list[SavedState] = []

    async def load(self, tenant: str, detector: str, subjects: Sequence[str]) -> dict[str, bytes]:
        return {}

    async def save(self, states: Sequence[SavedState]) -> None:
        self.saved += states


def keys(count: int) -> list[SeriesKey]:
    return [SeriesKey("pump-1", f"m{number}", Kind.DOUBLE, "") for number in range(1, count + 1)]


def samples(count: int) -> KindColumns:
    """Return a sample of each series, below the least valid value."""
    series = np.arange(1, count + 1, dtype=np.int32)
    return KindColumns(Kind.DOUBLE, series, np.full(count, NOW), np.full(count, -1.0))


async def test_series_are_known_before_a_sample_comes() -> None:
    states = SeriesStates()
    processing = Processing(catalog=Catalog(), store=Store(), states=states)  # type: ignore[arg-type]
    for _ in range(3):  # All of whose samples are refused, say.
        await processing.resolve("acme", keys(2_500), [METRIC] * 2_500)
    assert len(states) == 2_500
    runs = merge([samples(2_500)])
    assert (processing.judge(runs, np.zeros(1, np.int64)) != PERFECT).all()


async def test_all_that_changed_is_saved() -> None:
    store = Store()
    processing = Processing(catalog=Catalog(), store=store)  # type: ignore[arg-type]
    await processing.resolve("acme", keys(2_500), [METRIC] * 2_500)
    processing.judge(merge([samples(2_500)]), np.zeros(1, np.int64))
    await processing.save()
    assert sorted(int(state.subject) for state in store.saved) == list(range(1, 2_501))


async def test_what_cannot_be_judged_is_stored_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def defect(*_: object, **__: object) -> None:
        raise ValueError("a defect")

    processing = Processing(catalog=Catalog(), store=Store())  # type: ignore[arg-type]
    runs = merge([samples(3)])
    with monkeypatch.context() as broken:
        broken.setattr(module, "judge", defect)
        assert processing.judge(runs, np.zeros(1, np.int64)).tolist() == [NOT_JUDGED] * 3
    assert processing.judge(runs, np.zeros(1, np.int64)).tolist() == [PERFECT] * 3
