"""T² and Q per device: what they see that single metrics do not show, and what they ride out."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.detectors.detector import Detector
from ingest_svc.detectors.multivariate import (
    DEFAULTS,
    MAX_METRICS,
    RELEARN,
    DeviceScores,
    MultivariateDetector,
    Settings,
)

Rows = npt.NDArray[np.float64]
WARM_UP = DEFAULTS.warm_up
_DETECTOR: type[Detector] = MultivariateDetector  # mypy: it is one.


def judge(
    detector: MultivariateDetector, rows: Rows, *, start: int = 0, slot: int = 0, runs: Sequence[int] = ()
) -> DeviceScores:
    """Give one device's rows, one a second, in runs of these lengths; by default in one."""
    lengths = np.array(runs or [len(rows)], np.intp)
    times = (start + np.arange(len(rows), dtype=np.int64)) * 1_000_000
    slots = np.full(len(lengths), slot, np.int32)
    return detector.score(slots, np.cumsum(lengths) - lengths, lengths, times, rows)


def pump(rows: int, seed: int = 1) -> Rows:
    """Four metrics, of which flow and current follow a common load, in units of their own."""
    noise = np.random.default_rng(seed).normal(size=(rows, 5))
    load = noise[:, 4]
    flow, current = load + 0.1 * noise[:, 0], load + 0.1 * noise[:, 1]
    return np.column_stack((120 + 3 * flow, 2 + 0.2 * current, noise[:, 2], 1e6 + 1e3 * noise[:, 3]))


def warm(rows: Rows | None = None) -> MultivariateDetector:
    taken = pump(WARM_UP) if rows is None else rows
    detector = MultivariateDetector(taken.shape[1], 1)
    judge(detector, taken)
    return detector


def test_nothing_is_scored_in_the_warm_up() -> None:
    found = judge(MultivariateDetector(4, 1), pump(WARM_UP))
    assert not found.anomalous.any()
    assert not np.stack((found.scores, found.t2, found.q)).any()


def test_normal_noise_is_hardly_ever_anomalous() -> None:
    found = judge(warm(), pump(20_000, seed=2), start=WARM_UP)
    # Limits are for one in a thousand; a mean of 400 rows is not quite that of all.
    assert found.anomalous.mean() < 0.01
    assert (found.scores > 0).all()
    assert ((found.scores > 1) == found.anomalous).all()


def test_metrics_that_do_not_go_together_are_seen_though_each_is_usual() -> None:
    rows = pump(60, seed=2)
    rows[:, 0] = 120 - (rows[:, 1] - 2) / 0.2 * 3  # Flow falls where it used to rise.
    rows[:, 1] = 2 + 0.2 * 1.2
    rows[:, 0] = 120 - 3 * 1.2
    found = judge(warm(), rows, start=WARM_UP)
    assert found.anomalous[10:].all()


def test_a_metric_that_was_the_same_as_another_raises_q_when_it_leaves_it() -> None:
    twins = pump(WARM_UP)[:, [0, 0, 2]]
    detector = warm(twins)
    rows = pump(40, seed=2)[:, [0, 0, 2]]
    assert not judge(detector, rows, start=WARM_UP).anomalous.any()
    rows[:, 1] += 0.5
    found = judge(detector, rows, start=WARM_UP + 40)
    assert found.anomalous[5:].all()
    assert (found.q[5:] > 100 * 1e-6).all()
    assert (found.t2 < 20).all()


def test_small_shifts_that_last_are_seen() -> None:
    rows = pump(300, seed=2)
    rows[:, 2] += 3  # Which single samples of noise reach, too.
    found = judge(warm(), rows, start=WARM_UP)
    assert found.anomalous[30:].mean() > 0.9


def test_one_wild_row_is_forgotten_soon() -> None:
    rows = pump(200, seed=2)
    rows[10] = 1e300
    found = judge(warm(), rows, start=WARM_UP)
    assert found.anomalous[10]
    assert found.anomalous[40:].mean() < 0.05


def test_what_wandered_in_the_warm_up_may_go_on() -> None:
    rows = pump(2 * WARM_UP)
    rows[:, 2] += 0.01 * np.arange(2 * WARM_UP)
    steady = Settings(wander=1.0, drift=float("inf"))
    for settings, most in ((DEFAULTS, 0.2), (steady, 1.0)):
        detector = MultivariateDetector(4, 1, settings=settings)
        share = judge(detector, rows).anomalous[WARM_UP:].mean()
        assert share < most
    assert share > 0.4


def test_a_level_that_stays_becomes_usual() -> None:
    rows = pump(6_000, seed=2)
    rows[:, 2] += 8
    settings = Settings(drift=500.0)
    detector = MultivariateDetector(4, 1, settings=settings)
    judge(detector, pump(WARM_UP))
    found = judge(detector, rows, start=WARM_UP)
    assert found.anomalous[20:200].all()
    assert found.anomalous[4_000:].mean() < 0.02


def test_a_device_that_runs_in_another_way_for_long_is_learned_anew() -> None:
    detector = warm()
    rows = pump(RELEARN + WARM_UP + 1_000, seed=2)
    # It swings so slowly that smoothing leaves all of it, and so fast that the mean cannot follow.
    rows[:, 2] += 100 * np.sign(np.sin(np.arange(len(rows)) / 10 * np.pi))
    rows[:, 3] += 100_000 * np.sign(np.cos(np.arange(len(rows)) / 10 * np.pi))
    found = judge(detector, rows, start=WARM_UP)
    assert found.anomalous[20:RELEARN].all()
    first = RELEARN + WARM_UP + 100
    assert found.anomalous[first:].mean() < 0.05


def test_constant_and_missing_metrics_are_left_out() -> None:
    rows = pump(WARM_UP)
    rows[:, 0] = 5.0
    rows[:, 1] = np.nan
    detector = warm(rows)
    later = pump(200, seed=2)
    found = judge(detector, later, start=WARM_UP)
    assert found.anomalous.mean() < 0.05
    later[:, 2] += 20
    assert judge(detector, later, start=WARM_UP + 200).anomalous[5:].all()


def test_a_device_without_any_varying_metric_is_never_anomalous() -> None:
    detector = warm(np.full((WARM_UP, 2), 3.0))
    assert not judge(detector, np.full((10, 2), 4.0), start=WARM_UP).anomalous.any()


def test_a_missing_value_stands_for_the_last_one() -> None:
    gaps = pump(WARM_UP + 300)
    gaps[7::3, 1] = np.nan
    gaps[0:5, 3] = np.nan
    filled = gaps.copy()
    filled[0:5, 3] = filled[5, 3]
    for row in range(1, len(filled)):
        filled[row] = np.where(np.isnan(filled[row]), filled[row - 1], filled[row])
    with_gaps, without = MultivariateDetector(4, 1), MultivariateDetector(4, 1)
    runs = [3, 2, 7] + [73] * 9
    runs.append(len(gaps) - sum(runs))
    found, expected = judge(with_gaps, gaps, runs=runs), judge(without, filled, runs=runs)
    assert found.scores == pytest.approx(expected.scores, rel=1e-3)


def test_what_comes_late_is_judged_and_changes_nothing() -> None:
    detector = warm()
    before = detector.rows([0])
    rows = pump(3, seed=2)
    rows[1] += 1e6
    rows[2, 0] = np.nan
    found = judge(detector, rows, start=10)
    assert found.anomalous.tolist() == [False, True, False]
    assert detector.rows([0]).tolist() == before.tolist()


def test_what_comes_late_in_the_warm_up_is_not_scored() -> None:
    detector = warm(pump(WARM_UP // 2))
    before = detector.rows([0])
    assert not judge(detector, pump(3) + 1e9, start=10).anomalous.any()
    assert detector.rows([0]).tolist() == before.tolist()


@given(st.integers(0, 100), st.lists(st.integers(1, 200), min_size=1, max_size=30))
def test_how_rows_are_cut_into_runs_does_not_matter(seed: int, lengths: list[int]) -> None:
    rows = pump(sum(lengths), seed)
    rows[:, 2] += 0.002 * np.arange(len(rows))
    whole, cut = warm(), warm()
    together = judge(whole, rows, start=WARM_UP)
    start, parts = 0, []
    for length in lengths:
        parts.append(judge(cut, rows[start : start + length], start=WARM_UP + start))
        start += length
    assert np.concatenate([part.scores for part in parts]) == pytest.approx(together.scores, rel=1e-3)


@given(st.integers(0, 100), st.lists(st.integers(1, 500), min_size=1, max_size=6))
def test_a_state_that_was_kept_goes_on_as_if_it_had_never_been_away(seed: int, lengths: list[int]) -> None:
    detector, start = MultivariateDetector(4, 3), 0
    for length in lengths:
        taken_over = MultivariateDetector(4, 3)
        taken_over.load([0, 1, 2], detector.rows([0, 1, 2]))
        rows = pump(length, seed + start)
        rows[seed % 7 :: 11, seed % 4] = np.nan
        found = judge(detector, rows, start=start, slot=1)
        again = judge(taken_over, rows, start=start, slot=1)
        assert found.scores.tolist() == again.scores.tolist()
        assert np.array_equal(taken_over.rows([0, 1, 2]), detector.rows([0, 1, 2]), equal_nan=True)
        start += length


@given(st.sampled_from([1e-9, 0.1, 1e9]), st.integers(0, 3))
def test_the_unit_of_a_metric_does_not_matter(factor: float, metric: int) -> None:
    rows = pump(WARM_UP + 100)
    rows[WARM_UP + 50 :, metric] *= 1.5
    scaled = rows.copy()
    scaled[:, metric] *= factor
    found, again = judge(MultivariateDetector(4, 1), rows), judge(MultivariateDetector(4, 1), scaled)
    assert again.scores == pytest.approx(found.scores, rel=1e-3, abs=1e-4)


def test_devices_of_one_group_do_not_touch_each_other() -> None:
    together, alone = MultivariateDetector(4, 3), MultivariateDetector(4, 3)
    slots, start = np.arange(3, dtype=np.int32), 0
    for length in (30, 200, 170, 64, 5):
        rows = [pump(length, seed=start + slot) for slot in range(3)]
        lengths = np.full(3, length, np.intp)
        times = np.tile(np.arange(start, start + length, dtype=np.int64), 3)
        found = together.score(slots, np.cumsum(lengths) - lengths, lengths, times, np.concatenate(rows))
        times = times[:length]
        apart = [
            alone.score(slots[[slot]], np.zeros(1, np.intp), lengths[[slot]], times, rows[slot])
            for slot in range(3)
        ]
        assert found.scores == pytest.approx(np.concatenate([part.scores for part in apart]), rel=1e-3)
        start += length


def test_many_metrics_have_a_bounded_state() -> None:
    detector = MultivariateDetector(MAX_METRICS, 1)
    rows = np.random.default_rng(1).normal(size=(detector.warm_up + 500, MAX_METRICS))
    assert judge(detector, rows).anomalous.mean() < 0.02
    assert detector.rows([0]).shape == (1, detector.state_size)
    assert detector.state_size * 8 < 40_000  # bytes


def test_room_that_is_made_later_changes_nothing_of_what_is_there() -> None:
    detector, other = warm(), warm()
    detector.reserve(4)
    assert detector.capacity == 4
    assert detector.rows([3]).any() == np.False_
    rows = pump(50, seed=2)
    assert (
        judge(detector, rows, start=WARM_UP).scores.tolist()
        == judge(other, rows, start=WARM_UP).scores.tolist()
    )


@pytest.mark.parametrize("metrics", [0, MAX_METRICS + 1])
def test_too_many_metrics_are_refused(metrics: int) -> None:
    with pytest.raises(ValueError, match="1 to 64"):
        MultivariateDetector(metrics)


@pytest.mark.parametrize(
    "settings",
    [{"warm_up": 401}, {"warm_up": 0}, {"half_life": 0}, {"drift": 0}, {"wander": 0.5},
     {"explained": 0}, {"explained": 1.1}, {"probability": 1.0}],
)  # fmt: skip
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"."):
        Settings(**settings)  # type: ignore[arg-type] # Ints among them.


@pytest.mark.parametrize("rows", [np.zeros((1, 3)), np.full((1, 67), 401.0)])
def test_states_of_another_form_are_refused(rows: Rows) -> None:
    with pytest.raises(ValueError, match="states"):
        MultivariateDetector(4, 1).load([0], rows)
