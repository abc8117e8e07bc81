"""The rules of quality: how good samples are, judged in whole arrays. No I/O."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ingest_svc.series_states import ALONE, NEVER, UNKNOWN, SeriesStates, Slots
from telemetry_store.columns import Kind
from telemetry_store.merge import Index, Runs
from telemetry_store.quality import PERFECT, STEPS, Codes, constant, pack

# So many intervals may pass before a sample counts as missing: clocks and networks are not exact.
_TOLERATED_INTERVALS = 1.5
_MICROS = 1e6
_COMPLETENESS, _VALIDITY, _CONSISTENCY, _TIMELINESS = range(4)
_NUMBERS = (Kind.DOUBLE, Kind.INT)

# A part of the quality of some samples: their places, and how good they are, in steps of 5 %.
_Part = tuple[Index, npt.NDArray[np.int32]]
_NOTHING = np.empty(0, np.intp)
_NO_STEPS = np.empty(0, np.int32)


def judge(runs: Runs, slots: Slots, states: SeriesStates, *, received_us: npt.NDArray[np.int64]) -> Codes:
    """Return how good samples are, and take them into the states of their series.

    Args:
        runs: the samples, ascending within a series.
        slots: intp[r], of the runs' series.
        states: how the series were before.
        received_us: int64[r], when each run came, microseconds since the epoch; 0: it is not live.
    """
    rules = states.rule_places[slots]
    parts: list[tuple[int, _Part]] = [
        (_TIMELINESS, _timeliness(runs, states.rules.timely_us[rules], received_us)),
        (_VALIDITY, _validity(runs, states.rules.minima[rules], states.rules.maxima[rules])),
        *_against_the_last(runs, slots, states, rules),
    ]
    anomalous = np.union1d(_unusual(runs, slots, states, rules), _not_fitting(runs, slots, states))
    _remember_last(runs, slots, states)
    parts = [(number, part) for number, part in parts if len(part[0])]
    if not parts and not len(anomalous):
        return constant(PERFECT, len(runs.times))
    return _codes(runs, states.rules.weights[rules], parts, anomalous)


def _codes(
    runs: Runs, weights: npt.NDArray[np.float64], parts: Sequence[tuple[int, _Part]], anomalous: Index
) -> Codes:
    """Return codes; only samples that are less than perfect are looked at."""
    special = np.zeros(len(runs.times), np.bool_)
    for found in (*(found for _, (found, _) in parts), anomalous):
        special[found] = True
    places = np.flatnonzero(special)
    of_places = np.cumsum(special) - 1  # Which of `places` a sample is: no search, they may be all.
    steps = np.full((4, len(places)), STEPS, np.int32)
    for number, (found, values) in parts:
        steps[number, of_places[found]] = values
    of_runs = np.repeat(np.arange(len(runs.starts)), runs.lengths)[places]
    scores = np.rint(_weighted(weights, of_runs, steps) * (100 / STEPS)).astype(np.int32)
    flags = np.zeros(len(places), np.bool_)
    flags[of_places[anomalous]] = True
    codes = np.full(len(runs.times), PERFECT, np.int32)
    codes[places] = pack(scores, steps, flags)
    return codes


def _weighted(
    weights: npt.NDArray[np.float64], of_runs: Index, steps: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Return the mean of the four parts of each sample, by the weights of its run."""
    alike = bool((weights == weights[0]).all())
    weighted: npt.NDArray[np.float64] = (
        weights[0] @ steps if alike else np.einsum("ij,ji->i", weights[of_runs], steps)
    )
    return weighted


def _timeliness(runs: Runs, timely_us: npt.NDArray[np.int64], received_us: npt.NDArray[np.int64]) -> _Part:
    """Judge by the age at arrival; samples from the future are as bad as old ones."""
    first, last = runs.times[runs.starts], runs.times[runs.starts + runs.lengths - 1]
    off = np.maximum(received_us - first, last - received_us) > timely_us
    places, of_runs = _samples_of(runs, off & (received_us > 0))
    if not len(places):
        return _NOTHING, _NO_STEPS
    ages = np.abs(received_us[of_runs] - runs.times[places])
    return _less_than_perfect(places, _steps(timely_us[of_runs], ages))


def _validity(runs: Runs, minima: npt.NDArray[np.float64], maxima: npt.NDArray[np.float64]) -> _Part:
    """Judge by the range of the metric."""
    if runs.kind not in _NUMBERS or not (np.isfinite(minima) | np.isfinite(maxima)).any():
        return _NOTHING, _NO_STEPS
    outside = (np.minimum.reduceat(runs.values, runs.starts) < minima) | (
        np.maximum.reduceat(runs.values, runs.starts) > maxima
    )
    places, of_runs = _samples_of(runs, outside)
    values = runs.values[places]
    places = places[(values < minima[of_runs]) | (values > maxima[of_runs])]
    return places, np.zeros(len(places), np.int32)


def _against_the_last(
    runs: Runs, slots: Slots, states: SeriesStates, rules: npt.NDArray[np.int32]
) -> list[tuple[int, _Part]]:
    """Judge completeness and consistency, by the sample before each."""
    intervals = states.rules.intervals_us[rules]
    max_rates = states.rules.max_rates[rules]
    compared = intervals > 0
    if runs.kind in _NUMBERS:
        compared |= np.isfinite(max_rates)
    places, of_runs = _samples_of(runs, compared)
    if not len(places):
        return []
    passed, last_values = _since_the_last(runs, places, slots[of_runs], states)
    limits = intervals[of_runs]
    late = (limits > 0) & (passed > limits * _TOLERATED_INTERVALS)
    found = [(_COMPLETENESS, (places[late], _steps(limits[late], passed[late])))]
    if runs.kind in _NUMBERS:
        with np.errstate(over="ignore", invalid="ignore"):  # Of the greatest doubles, and of no time.
            rates = np.abs(runs.values[places] - last_values) / np.where(passed > 0, passed / _MICROS, np.inf)
        allowed = max_rates[of_runs]
        fast = rates > allowed  # NaN, for no value before, is not.
        found.append((_CONSISTENCY, (places[fast], _steps(allowed[fast], rates[fast]))))
    return found


def _since_the_last(
    runs: Runs, places: Index, slots: Slots, states: SeriesStates
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Return how much time has passed since the sample before each, 0 when there is none, and its value.

    The sample before is in the runs, or the one that was remembered when that is nearer.
    """
    times = runs.times[places]
    heads = np.zeros(len(runs.times), np.bool_)
    heads[runs.starts[np.append(True, runs.series[1:] != runs.series[:-1])]] = True
    in_runs = np.where(heads[places], NEVER, runs.times[places - 1])
    remembered, values = states.before(slots, times)
    last = np.maximum(in_runs, remembered)
    passed = np.where(last == NEVER, 0, times - np.where(last == NEVER, times, last))
    if runs.kind in _NUMBERS:
        values = np.where(in_runs >= remembered, runs.values[places - 1], values)
    return passed, values


def _unusual(runs: Runs, slots: Slots, states: SeriesStates, rules: npt.NDArray[np.int32]) -> Index:
    """Return the places of samples that are anomalies, and let their series' detector learn from all."""
    looked_at = (slots != UNKNOWN) & np.isfinite(states.rules.anomaly_thresholds[rules])
    if runs.kind not in _NUMBERS or not looked_at.any():
        return _NOTHING
    found = states.detector.score(
        slots[looked_at].astype(np.int32),
        runs.starts[looked_at],
        runs.lengths[looked_at],
        runs.times,
        runs.values.astype(np.float64, copy=False),
    )
    return np.flatnonzero(found.anomalous)


def _not_fitting(runs: Runs, slots: Slots, states: SeriesStates) -> Index:
    """Return the places of samples of times at which the metrics of their device do not fit each other."""
    groups = states.joint_groups[slots]
    found = [_NOTHING]
    for group in np.unique(groups[groups != ALONE]).tolist() if runs.kind is Kind.DOUBLE else ():
        places, of_runs = _samples_of(runs, groups == group)
        series = slots[of_runs]
        anomalous = states.devices.judge(
            group,
            states.joint_slots[series],
            states.joint_columns[series],
            runs.times[places],
            runs.values[places],
        )
        found.append(places[anomalous])
    return np.concatenate(found)


def _remember_last(runs: Runs, slots: Slots, states: SeriesStates) -> None:
    differs = runs.series[1:] != runs.series[:-1]
    first_runs, last_runs = np.append(True, differs), np.append(differs, True)
    places = (runs.starts + runs.lengths - 1)[last_runs]
    values = runs.values[places].astype(np.float64) if runs.kind in _NUMBERS else None
    states.remember(slots[last_runs], runs.times[runs.starts[first_runs]], runs.times[places], values)


def _samples_of(runs: Runs, chosen: npt.NDArray[np.bool_]) -> tuple[Index, Index]:
    """Return the places of the samples of chosen runs, and the run of each."""
    if not chosen.any():
        return _NOTHING, _NOTHING
    of_runs = np.flatnonzero(chosen)
    lengths = runs.lengths[of_runs]
    offsets = np.repeat(runs.starts[of_runs] - (np.cumsum(lengths) - lengths), lengths)
    return offsets + np.arange(len(offsets)), np.repeat(of_runs, lengths)


def _steps(allowed: npt.NDArray[Any], found: npt.NDArray[Any]) -> npt.NDArray[np.int32]:
    """Return 20 where no more is found than allowed (above 0), and less in proportion to what is more."""
    steps: npt.NDArray[np.int32] = (STEPS * (allowed / np.maximum(allowed, found))).astype(np.int32)
    return steps


def _less_than_perfect(places: Index, steps: npt.NDArray[np.int32]) -> _Part:
    less = steps < STEPS
    return places[less], steps[less]
