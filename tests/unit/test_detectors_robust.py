"""The robust z-score: what it calls anomalous, how it learns, and that nobody can confuse it."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.detectors import robust
from ingest_svc.detectors.detector import Detector, Scores
from ingest_svc.detectors.robust import PIECE, STATE, THRESHOLD, WARM_UP, RobustDetector

Values = npt.NDArray[np.float64]
_NORMAL = 4 * WARM_UP


def judge(
    detector: Detector, values: npt.ArrayLike, *, start: int = 0, slot: int = 0, runs: Sequence[int] = ()
) -> Scores:
    """Give one series' values, one a second, in runs of these lengths; by default in one."""
    taken = np.asarray(values, np.float64)
    lengths = np.array(runs or [len(taken)], np.intp)
    times = (start + np.arange(len(taken), dtype=np.int64)) * 1_000_000
    slots = np.full(len(lengths), slot, np.int32)
    return detector.score(slots, np.cumsum(lengths) - lengths, lengths, times, taken)


def noise(samples: int, seed: int = 1) -> Values:
    return np.random.default_rng(seed).normal(size=samples)


def warm(values: Values | None = None) -> RobustDetector:
    """A detector of one series that has seen much, by default normal noise."""
    detector = RobustDetector(1)
    judge(detector, noise(_NORMAL) if values is None else values)
    return detector


def test_normal_noise_is_not_anomalous_and_its_scores_are_standard_deviations() -> None:
    found = judge(warm(), noise(20_000, seed=2), start=_NORMAL)
    assert not found.anomalous.any()
    assert found.scores.dtype == np.float32
    assert found.scores.std() == pytest.approx(1, rel=0.1)


def test_an_outlier_is_anomalous_and_teaches_next_to_nothing() -> None:
    detector = warm()
    before = detector.rows([0])
    found = judge(detector, [1e6], start=_NORMAL)
    assert found.anomalous.tolist() == [True]
    assert found.scores[0] == pytest.approx(1e6, rel=0.2)
    location, scale = (detector.rows([0]) - before)[0, :2]
    assert 0 < location < 0.01
    assert 0 < scale < 0.01


def test_an_outlier_in_the_first_run_is_not_what_is_usual_from_then_on() -> None:
    values = noise(WARM_UP)
    values[3] = 1e5
    detector = warm(values)
    assert judge(detector, [10.0], start=WARM_UP).anomalous.tolist() == [True]


def test_nothing_is_anomalous_in_the_warm_up() -> None:
    detector = RobustDetector(1)
    values = noise(WARM_UP)
    values[20:] += 1_000
    assert not judge(detector, values).anomalous.any()
    assert judge(detector, [1e5], start=WARM_UP).anomalous.all()


@pytest.mark.parametrize("runs", [1, 64, 3_600])
def test_a_level_that_stays_becomes_usual_after_the_stated_time(runs: int) -> None:
    half_life, shift = 2_000, 50.0
    detector = RobustDetector(1)
    detector.configure([0], half_lives=half_life)
    samples = 3 * half_life
    judge(detector, noise(samples))
    moved = noise(samples, seed=2) + shift
    lengths = [runs] * (samples // runs) + ([samples % runs] if samples % runs else [])
    found = judge(detector, moved, start=samples, runs=lengths)
    stated = int(np.log2(shift / THRESHOLD) / (1.2533 * robust.CLIP - 1) * half_life)
    assert found.anomalous[: stated // 2].all()
    assert not found.anomalous[int(stated * 1.5) :].any()


def test_a_constant_series_scores_0_and_its_first_change_is_what_later_ones_are_measured_by() -> None:
    detector = warm(np.full(_NORMAL, 7.5))
    found = judge(detector, [7.5, 8.5, 7.5, 7.5], start=_NORMAL)
    assert found.scores.tolist() == [0, 0, 0, 0]
    found = judge(detector, [8.5, 7.5, 80.0], start=_NORMAL + 4)
    assert found.anomalous.tolist() == [False, False, True]
    assert 0.5 < found.scores[0] < 1


@pytest.mark.parametrize(("every", "anomalous"), [(2, False), (100, True)])
def test_changes_of_a_switch_are_anomalous_when_they_are_rare(every: int, anomalous: bool) -> None:
    values = np.full(20_000, 3.0)
    values[::every] = 4.0
    assert judge(RobustDetector(1), values).anomalous.any() == anomalous


def test_what_comes_late_is_judged_and_changes_nothing() -> None:
    detector = warm()
    before = detector.rows([0])
    found = judge(detector, [0.0, 100.0, 0.5], start=_NORMAL - 3)
    assert found.anomalous.tolist() == [False, True, False]
    assert detector.rows([0]).tolist() == before.tolist()


def test_of_a_run_that_begins_late_only_the_rest_is_learned() -> None:
    late, punctual = warm(), warm()
    values = noise(40, seed=3)
    found = judge(late, values, start=_NORMAL - 15, runs=[5, 35])
    judge(punctual, values[15:], start=_NORMAL)
    assert late.rows([0]).tolist() == punctual.rows([0]).tolist()
    assert (found.scores != 0).all()


def test_the_same_group_again_does_no_harm() -> None:
    """A group that is thrown back is processed twice."""
    detector = warm()
    values = noise(200, seed=3)
    judge(detector, values, start=_NORMAL)
    before = detector.rows([0])
    judge(detector, values, start=_NORMAL)
    assert detector.rows([0]).tolist() == before.tolist()


def test_settings_are_those_of_each_slot() -> None:
    detector = RobustDetector(3)
    detector.configure([0, 1], thresholds=[3.0, 8.0])
    n = 2_000
    for slot in range(3):
        judge(detector, noise(n), slot=slot)
    slots = np.arange(3, dtype=np.int32)
    ones = np.ones(3, np.intp)
    times = np.full(3, n * 1_000_000, np.int64)
    found = detector.score(slots, slots.astype(np.intp), ones, times, np.full(3, 6.0))
    assert found.anomalous.tolist() == [True, False, True]


@pytest.mark.parametrize("settings", [{"thresholds": 0}, {"half_lives": 0.5}, {"thresholds": float("nan")}])
def test_settings_out_of_range_are_refused(settings: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="above 0"):
        RobustDetector(1).configure([0], **settings)


@pytest.mark.parametrize("seen", [0, _NORMAL])
def test_what_leaves_the_range_of_doubles_is_not_learned(seen: int) -> None:
    detector = RobustDetector(1)
    if seen:
        judge(detector, noise(seen))
    judge(detector, [-1.7e308, 1.7e308, -1.7e308, 1.7e308], start=seen)
    assert np.isfinite(detector.rows([0])).all()
    judge(detector, noise(5_000), start=seen + 4)
    assert judge(detector, [100.0], start=seen + 5_004).anomalous.all()


def test_no_samples_are_no_scores() -> None:
    none = np.zeros(0, np.int32)
    found = warm().score(none, none.astype(np.intp), none.astype(np.intp), none.astype(np.int64), np.zeros(0))
    assert (len(found.scores), len(found.anomalous)) == (0, 0)


def test_room_that_is_made_later_changes_nothing_of_what_is_there() -> None:
    detector = warm()
    before = detector.rows([0])
    detector.reserve(10)
    detector.reserve(5)
    assert detector.capacity == 10
    assert detector.rows([0]).tolist() == before.tolist()
    assert detector.rows([9]).tolist() == [[0] * STATE]
    judge(detector, noise(10), slot=9)


@pytest.mark.parametrize(
    "rows", [np.zeros((1, 3)), np.zeros((2, 4)), np.full((1, 4), np.nan), np.array([[0.0, -1, 1, 1]])]
)
def test_states_of_another_form_are_refused(rows: Values) -> None:
    with pytest.raises(ValueError, match="states"):
        RobustDetector(2).load([0], rows)


@st.composite
def groups(draw: st.DrawFn) -> list[list[tuple[int, list[int], list[float]]]]:
    """Draw groups of what a few series sent: slot, times of any age, values of any size."""
    values = st.floats(allow_nan=False, allow_infinity=False) | st.floats(-10, 10)
    made = []
    for _ in range(draw(st.integers(1, 4))):
        group = []
        for slot in draw(st.lists(st.integers(0, 4), min_size=1, max_size=4, unique=True)):
            times = sorted(draw(st.lists(st.integers(-(2**50), 2**50), min_size=1, max_size=12, unique=True)))
            group.append((slot, times, draw(st.lists(values, min_size=len(times), max_size=len(times)))))
        made.append(group)
    return made


def give(detector: Detector, group: list[tuple[int, list[int], list[float]]]) -> Scores:
    lengths = np.array([len(times) for _, times, _ in group], np.intp)
    return detector.score(
        np.array([slot for slot, *_ in group], np.int32),
        np.cumsum(lengths) - lengths,
        lengths,
        np.array([time for _, times, _ in group for time in times], np.int64),
        np.array([value for *_, values in group for value in values], np.float64),
    )


@given(groups())
def test_a_state_that_was_kept_goes_on_as_if_it_had_never_been_away(
    made: list[list[tuple[int, list[int], list[float]]]],
) -> None:
    detector = RobustDetector(5)
    for group in made:
        taken_over = RobustDetector(5)
        taken_over.load(range(5), detector.rows(range(5)))
        found, again = give(detector, group), give(taken_over, group)
        assert np.array_equal(found.scores, again.scores, equal_nan=True)
        assert found.anomalous.tolist() == again.anomalous.tolist()
        assert np.isfinite(detector.rows(range(5))).all()
        assert taken_over.rows(range(5)).tolist() == detector.rows(range(5)).tolist()


@given(st.integers(0, 1_000), st.lists(st.integers(1, 200), min_size=1, max_size=40))
def test_how_samples_are_cut_into_runs_matters_little(seed: int, lengths: list[int]) -> None:
    """Scores differ by a tenth of a standard deviation at most, flags only beside the threshold."""
    whole, cut = RobustDetector(1), RobustDetector(1)
    judge(whole, noise(2_000))
    judge(cut, noise(2_000))
    values = noise(sum(lengths), seed)
    values[:: 50 + seed % 50] *= 10
    together = judge(whole, values, start=2_000)
    start, parts = 0, []
    for length in lengths:
        parts.append(judge(cut, values[start : start + length], start=2_000 + start))
        start += length
    scores = np.concatenate([part.scores for part in parts])
    anomalous = np.concatenate([part.anomalous for part in parts])
    allowed = 0.1 + 0.02 * np.abs(scores)
    assert (np.abs(scores - together.scores) <= allowed).all()
    sure = np.abs(np.abs(scores) - THRESHOLD) > allowed
    assert (anomalous == together.anomalous)[sure].all()


def test_runs_of_one_call_are_as_runs_of_several() -> None:
    once, twice = warm(), warm()
    values = noise(2 * PIECE, seed=3)
    together = judge(once, values, start=_NORMAL, runs=[PIECE // 2] * 4)
    whole = judge(twice, values, start=_NORMAL)
    assert together.scores.tolist() == whole.scores.tolist()


@given(st.sampled_from([1e-9, 0.5, 3.0, 1e12]), st.integers(0, 1_000))
def test_the_unit_of_a_metric_does_not_matter(factor: float, seed: int) -> None:
    values = noise(600, seed)
    values[300::40] += 20
    scores = judge(RobustDetector(1), values)
    scaled = judge(RobustDetector(1), values * factor)
    assert scaled.scores == pytest.approx(scores.scores, rel=1e-4, abs=1e-4)
    assert scaled.anomalous.tolist() == scores.anomalous.tolist()


@given(st.lists(st.integers(1, 150), min_size=1, max_size=6), st.integers(0, 100))
def test_series_of_one_group_do_not_touch_each_other(lengths: list[int], seed: int) -> None:
    together, alone = RobustDetector(len(lengths)), RobustDetector(len(lengths))
    for number in range(3):
        series = [noise(length, seed + number) * 10**slot for slot, length in enumerate(lengths)]
        times = [list(range(number * 1_000, number * 1_000 + length)) for length in lengths]
        found = give(
            together,
            [(slot, times[slot], values.tolist()) for slot, values in enumerate(series)],
        )
        apart = [give(alone, [(slot, times[slot], of.tolist())]) for slot, of in enumerate(series)]
        assert found.scores == pytest.approx(np.concatenate([part.scores for part in apart]), rel=1e-5)
