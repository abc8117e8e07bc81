"""`bench anomaly`: how well the detectors find what two public benchmarks have marked, and what they cost.

BENCH_SKAB names the folder of SKAB's files (`data` of github.com/waico/SKAB), BENCH_NAB that of
NAB's (a clone of github.com/numenta/NAB, or its machine_temperature_system_failure.csv and a JSON
file of its windows). What is not named is left out, and the report says so.
"""

import csv
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from bench.anomaly_scores import Flags, Rates, nab_score, skab_rates
from bench.report import Case, Report
from ingest_svc.detectors import robust
from ingest_svc.detectors.detector import Detector, Floats, Times
from ingest_svc.detectors.multivariate import DEFAULTS, MultivariateDetector, Settings
from ingest_svc.detectors.robust import RobustDetector

LEARNED = 400  # rows of a SKAB file that are not scored.
SKAB_RUN = 60  # rows of a group: what a device that measures once a second sends in a minute.
NAB_RUN = 12  # an hour.
PUBLISHED_T2_Q = 0.76  # SKAB's leaderboard, over all of its files.
NAB_FILE = "machine_temperature_system_failure.csv"
GROUP_SAMPLES = 500_000
ROUNDS = 9
_NOT_METRICS = {"datetime", "anomaly", "changepoint"}
# Neighbours of the defaults, so that one sees whether they stand on a plateau or on a peak.
_NEIGHBOURS = [
    *(replace(DEFAULTS, wander=wander) for wander in (5.0, 8.0, 20.0, 30.0)),
    *(replace(DEFAULTS, half_life=half_life) for half_life in (2.0, 3.0, 8.0, 10.0)),
    *(replace(DEFAULTS, probability=probability) for probability in (0.99, 0.9999)),
    *(replace(DEFAULTS, explained=explained) for explained in (0.95, 1.0)),
    *(replace(DEFAULTS, drift=drift) for drift in (500.0, 2_000.0, float("inf"))),
]
_THRESHOLDS = (3.0, 4.0, 4.5, 5.0, 6.0)
_HALF_LIVES = (1_000.0, 3_000.0, 5_000.0, 10_000.0)


@dataclass(frozen=True, slots=True)
class Recording:
    """One file of a benchmark.

    Attributes:
        times: int64[n], microseconds.
        rows: float64[n, metrics].
        anomalous: bool[n]; None: nothing is marked.
    """

    times: Times
    rows: Floats
    anomalous: Flags | None = None


def run() -> Report:
    """Measure and return the report."""
    cases: list[Case] = []
    notes: list[str] = []
    skab, nab = os.environ.get("BENCH_SKAB"), os.environ.get("BENCH_NAB")
    if skab:
        recordings = read_skab(Path(skab))
        marked = [recording for recording in recordings if recording.anomalous is not None]
        cases += _skab_cases(marked, [found for found in recordings if found.anomalous is None])
        notes.append(
            f"SKAB: {len(marked)} files with anomalies (its leaderboard: 34), the first {LEARNED} rows of "
            f"each unscored, {SKAB_RUN} rows a run; ratio to the leaderboard's T²+Q, {PUBLISHED_T2_Q}"
        )
    else:
        notes.append("SKAB was left out: BENCH_SKAB names no folder (data of github.com/waico/SKAB)")
    if nab:
        cases += _nab_cases(*read_nab(Path(nab)))
        notes.append("NAB: machine temperature only, standard profile; published figures are of all files")
    else:
        notes.append("NAB was left out: BENCH_NAB names no folder (a clone of github.com/numenta/NAB)")
    cases += _cost_cases()
    notes.append(f"costs: best of {ROUNDS}, groups of {GROUP_SAMPLES} values")
    return Report("anomaly", cases, notes)


def read_skab(folder: Path) -> list[Recording]:
    """Return SKAB's recordings, by name.

    Raises:
        FileNotFoundError: the folder has none.
    """
    recordings = []
    for path in sorted(folder.rglob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file, delimiter=";"))
        metrics = [name for name in rows[0] if name not in _NOT_METRICS]
        recordings.append(
            Recording(
                _times([row["datetime"] for row in rows]),
                np.array([[float(row[name]) for name in metrics] for row in rows]),
                np.array([float(row["anomaly"]) == 1 for row in rows]) if "anomaly" in rows[0] else None,
            )
        )
    if not recordings:
        raise FileNotFoundError(f"{folder} holds no CSV files of SKAB")
    return recordings


def read_nab(folder: Path) -> tuple[Recording, list[tuple[int, int]]]:
    """Return NAB's machine temperature, and first and last sample of each window.

    Raises:
        FileNotFoundError: the file is missing, or its windows are.
    """
    path = next(folder.rglob(NAB_FILE), None)
    if path is None:
        raise FileNotFoundError(f"{folder} holds no {NAB_FILE}")
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    times = _times([row["timestamp"] for row in rows])
    for windows in sorted(folder.rglob("*windows.json")):
        for name, limits in json.loads(windows.read_text(encoding="utf-8")).items():
            if name.endswith(NAB_FILE):
                places = [np.searchsorted(times, _times(pair)).tolist() for pair in limits]
                recording = Recording(times, np.array([[float(row["value"])] for row in rows]))
                return recording, [(first, last) for first, last in places]
    raise FileNotFoundError(f"{folder} holds no JSON file with the windows of {NAB_FILE}")


def _times(texts: Sequence[str]) -> Times:
    times: Times = np.array(texts, "datetime64[us]").astype(np.int64)
    return times


def _skab_cases(marked: Sequence[Recording], unmarked: Sequence[Recording]) -> list[Case]:
    cases = []
    everything = skab_rates(
        (_scored(of.anomalous), np.ones(len(of.times) - LEARNED, np.bool_)) for of in marked
    )
    cases += _rates_cases("SKAB, T² and Q", _multivariate(marked, DEFAULTS))
    for threshold in _THRESHOLDS:
        cases += _rates_cases(f"SKAB, any z-score above {threshold:g}", _robust(marked, threshold))
    cases += _rates_cases("SKAB, everything is anomalous", everything)
    for number, recording in enumerate(unmarked, start=1):
        for warm_up in (LEARNED, 1_600, 3_200):
            settings = replace(DEFAULTS, warm_up=warm_up)
            called = _device_flags(recording, settings)[max(warm_up, LEARNED) :]
            cases.append(
                Case(
                    f"unmarked file {number}, T² and Q after {warm_up} rows", 100 * called.mean(), "% alarms"
                )
            )
        called = _metric_flags(recording, robust.THRESHOLD)[LEARNED:]
        cases.append(Case(f"unmarked file {number}, any z-score", 100 * called.mean(), "% alarms"))
    for settings in _NEIGHBOURS:
        cases.append(_f1(f"SKAB, T² and Q, {_difference(settings)}", _multivariate(marked, settings)))
    return cases


def _rates_cases(name: str, rates: Rates) -> list[Case]:
    return [
        _f1(name, rates),
        Case(f"{name}: false alarms", 100 * rates.false_alarms, "%"),
        Case(f"{name}: missed alarms", 100 * rates.missed_alarms, "%"),
    ]


def _f1(name: str, rates: Rates) -> Case:
    return Case(name, rates.f1, "F1", rates.f1 / PUBLISHED_T2_Q)


def _difference(settings: Settings) -> str:
    """Return the one setting that is not the default's."""
    names = ("wander", "half_life", "probability", "explained", "drift")
    [name] = [name for name in names if getattr(settings, name) != getattr(DEFAULTS, name)]
    return f"{name} {getattr(settings, name):g}"


def _multivariate(marked: Sequence[Recording], settings: Settings) -> Rates:
    return skab_rates((_scored(of.anomalous), _scored(_device_flags(of, settings))) for of in marked)


def _robust(marked: Sequence[Recording], threshold: float) -> Rates:
    return skab_rates((_scored(of.anomalous), _scored(_metric_flags(of, threshold))) for of in marked)


def _scored(flags: Flags | None) -> Flags:
    if flags is None:
        raise ValueError("a file without marks cannot be scored")
    return flags[LEARNED:]


def _device_flags(recording: Recording, settings: Settings) -> Flags:
    detector = MultivariateDetector(recording.rows.shape[1], 1, settings=settings)
    return _flags(detector, recording.times, recording.rows, SKAB_RUN)


def _metric_flags(recording: Recording, threshold: float) -> Flags:
    """Return the rows of which any metric is anomalous."""
    flags = np.zeros(len(recording.times), np.bool_)
    for metric in recording.rows.T:
        flags |= _flags(_robust_detector(threshold), recording.times, metric, SKAB_RUN)
    return flags


def _robust_detector(threshold: float, half_life: float = robust.HALF_LIFE) -> RobustDetector:
    detector = RobustDetector(1)
    detector.configure([0], thresholds=threshold, half_lives=half_life)
    return detector


def _flags(detector: Detector, times: Times, values: Floats, run_length: int) -> Flags:
    """Return what a detector says of one slot, given in runs as they come in."""
    found = []
    for start in range(0, len(times), run_length):
        part = slice(start, start + run_length)
        lengths = np.array([len(times[part])], np.intp)
        scores = detector.score(
            np.zeros(1, np.int32), np.zeros(1, np.intp), lengths, times[part], values[part]
        )
        found.append(scores.anomalous)
    return np.concatenate(found)


def _nab_cases(recording: Recording, windows: Sequence[tuple[int, int]]) -> list[Case]:
    def score(threshold: float, half_life: float) -> float:
        detector = _robust_detector(threshold, half_life)
        return nab_score(_flags(detector, recording.times, recording.rows[:, 0], NAB_RUN), windows)

    cases = [Case("NAB, machine temperature", score(robust.THRESHOLD, robust.HALF_LIFE), "of 100")]
    for half_life in _HALF_LIVES:
        for threshold in _THRESHOLDS:
            name = f"NAB, half-life {half_life:g}, z-score above {threshold:g}"
            cases.append(Case(name, score(threshold, half_life), "of 100"))
    return cases


def _cost_cases() -> list[Case]:
    cases = []
    for series, run_length in ((8_000, 60), (100_000, 5), (500_000, 1), (139, 3_600)):
        detector: Detector = RobustDetector(series)
        cost = _cost_ns(detector, series, run_length, (), learned=robust.WARM_UP)
        cases.append(Case(f"cost of a z-score, {series} runs of {run_length}", cost, "ns/value"))
    for devices, run_length in ((1_000, 60), (5_000, 1)):
        detector = MultivariateDetector(8, devices)
        cost = _cost_ns(detector, devices, run_length, (8,), learned=DEFAULTS.warm_up)
        cases.append(Case(f"cost of T² and Q, {devices} runs of {run_length}", cost / 8, "ns/value"))
    return cases


def _cost_ns(
    detector: Detector, slots: int, run_length: int, shape: tuple[int, ...], *, learned: int
) -> float:
    """Return nanoseconds a row, of groups with one run a slot, once the slots have learned enough."""
    random = np.random.default_rng(1)
    lengths = np.full(slots, run_length, np.intp)
    starts = np.cumsum(lengths) - lengths
    taken = []
    for number in range(-(-learned // run_length) + ROUNDS):
        first = number * run_length
        times = np.tile(np.arange(first, first + run_length, dtype=np.int64), slots)
        values = random.normal(size=(len(times), *shape))
        began = time.perf_counter()
        detector.score(np.arange(slots, dtype=np.int32), starts, lengths, times, values)
        taken.append(time.perf_counter() - began)
    return min(taken[-ROUNDS:]) / (slots * run_length) * 1e9
