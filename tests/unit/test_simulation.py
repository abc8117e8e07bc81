"""Simulated fleets: what they measure, what goes wrong, and whether it adds up."""

from collections import Counter, defaultdict
from itertools import pairwise

import numpy as np
import pytest
from typer.testing import CliRunner

from meshkit.clock import MICROS_PER_SECOND
from twinmesh_cli.doors import Outcome, readings_of
from twinmesh_cli.main import app
from twinmesh_cli.simulation import METRICS, Defect, Run, Sent, Simulation, Traits
from twinmesh_cli.simulation_report import Rates, Report
from twinmesh_client import Kind

START_US = 1_800_000_000 * MICROS_PER_SECOND
DEVICES = [f"sim-{number:04}" for number in range(1, 21)]
SHARES = Traits(rate=2, has_jitter=True, late=0.1, duplicates=0.05, bad=0.2)


def simulation(traits: Traits = SHARES, *, seed: int = 1) -> Simulation:
    return Simulation(traits, device_ids=DEVICES, start_us=START_US, seed=seed)


def samples(runs: list[Run]) -> Counter[tuple[str, str, Kind, int, object]]:
    return Counter(
        (run.device, run.metric, run.kind, time_us, value)
        for run in runs
        for time_us, value in zip(run.times_us, run.values, strict=True)
    )


def test_a_seed_tells_all_however_the_ticks_are_taken() -> None:
    whole = simulation()
    parts = simulation()
    at_once = samples(whole.advance(60))
    assert at_once == samples([*parts.advance(1), *parts.advance(26), *parts.advance(33)])
    assert (whole.sent, whole.ticks) == (parts.sent, parts.ticks)
    assert at_once != samples(simulation(seed=2).advance(60))


def test_shares_are_kept_and_counted() -> None:
    made = simulation()
    runs = made.advance(500)
    sent = made.sent
    ticks = 500 * len(DEVICES)
    assert sent.samples == ticks + sent.defects[Defect.DUPLICATE] == sum(samples(runs).values())
    assert sent.defects[Defect.LATE] / ticks == pytest.approx(0.1, rel=0.15)
    assert sent.defects[Defect.DUPLICATE] / ticks == pytest.approx(0.05, rel=0.15)
    assert sent.bad / ticks == pytest.approx(0.2, rel=0.15)
    for bad in (Defect.UNKNOWN_METRIC, Defect.OUT_OF_WINDOW, Defect.WRONG_KIND):
        assert sent.defects[bad] / sent.bad == pytest.approx(1 / 3, rel=0.15)


def test_what_is_counted_is_what_is_sent() -> None:
    made = simulation()
    runs = made.advance(500)
    defined = {metric.name: metric.kind for metric in METRICS} | {"location": Kind.POINT}
    found: Counter[Defect] = Counter()
    for (_, metric, kind, time_us, _), times in samples(runs).items():
        ago_s = (START_US + 500 / 2 * MICROS_PER_SECOND - time_us) / MICROS_PER_SECOND
        if metric not in defined:
            found[Defect.UNKNOWN_METRIC] += 1
        elif kind is not defined[metric]:
            found[Defect.WRONG_KIND] += 1
        elif ago_s > 366 * 86_400:
            found[Defect.OUT_OF_WINDOW] += 1
        elif times == 2:
            found[Defect.DUPLICATE] += 1
    told = made.sent.defects
    assert found == Counter({defect: count for defect, count in told.items() if defect is not Defect.LATE})


def test_one_trait_leaves_what_others_do() -> None:
    plain = samples(simulation(Traits(rate=2)).advance(100))
    duplicated = samples(simulation(Traits(rate=2, duplicates=0.3)).advance(100))
    assert set(duplicated) == set(plain)
    assert sum(duplicated.values()) > sum(plain.values()) == 100 * len(DEVICES)


def test_late_samples_are_of_a_minute_to_an_hour_ago() -> None:
    late = 0
    made = simulation(Traits(rate=2, late=0.3))
    plain = simulation(Traits(rate=2))
    for run, in_time in zip(made.advance(100), plain.advance(100), strict=True):
        assert (run.device, run.metric, run.values) == (in_time.device, in_time.metric, in_time.values)
        for time_us, in_time_us in zip(run.times_us, in_time.times_us, strict=True):
            if time_us != in_time_us:
                assert 60 * MICROS_PER_SECOND <= in_time_us - time_us <= 3600 * MICROS_PER_SECOND
                late += 1
    assert late == made.sent.defects[Defect.LATE] > 0


@pytest.mark.parametrize("rate", [0.001, 1, 1000])
@pytest.mark.parametrize("has_jitter", [False, True])
def test_times_run_forward_and_never_ahead(rate: float, has_jitter: bool) -> None:
    made = simulation(Traits(rate=rate, has_jitter=has_jitter))
    by_device: dict[str, list[int]] = defaultdict(list)
    for number in range(50):
        tick_us = START_US + round(number * MICROS_PER_SECOND / rate)
        for run in made.advance(1):
            assert tick_us - MICROS_PER_SECOND / rate <= run.times_us[0] <= tick_us
            by_device[run.device] += run.times_us
    assert by_device.keys() == set(DEVICES)
    for times in by_device.values():
        assert all(before < after for before, after in pairwise(times))


def test_values_are_smooth_and_plausible() -> None:
    runs = simulation(Traits(rate=3)).advance(3000)
    for run in runs:
        values = np.array(run.values) if run.kind is not Kind.STRING else None
        match run.metric:
            case "temperature":
                assert values is not None
                assert 20 < values.min() <= values.max() < 90
                assert 0 < np.abs(np.diff(values)).max() < 3
            case "pressure":
                assert values is not None
                assert -1 < values.min() <= values.max() < 6
            case "starts":
                assert values is not None
                assert (np.diff(values) >= 0).all()
            case "state":
                assert set(run.values) <= {"running", "idle", "fault"}
            case "location":
                assert values is not None
                assert (np.abs(values - [48.2, 16.37]) < 0.1).all()
    assert {state for run in runs if run.metric == "state" for state in run.values} >= {"running", "idle"}


def test_shares_beyond_the_whole_are_refused() -> None:
    Traits(late=0.5, duplicates=0.3, bad=0.2)
    with pytest.raises(ValueError, match="more than 1"):
        Traits(late=0.5, duplicates=0.3, bad=0.21)


def test_every_kind_has_its_json() -> None:
    runs = [
        Run("a", "temperature", Kind.DOUBLE, [START_US], [21.5]),
        Run("a", "starts", Kind.INT, [START_US + 1], [2**53 + 1]),
        Run("a", "state", Kind.STRING, [START_US], ["idle"]),
        Run("a", "location", Kind.POINT, [START_US], [(48.2, 16.4)]),
    ]
    assert [(reading["time"], reading["values"]) for reading in readings_of(runs)] == [
        ("2027-01-15T08:00:00Z", {"temperature": {"doubleValue": 21.5}}),
        ("2027-01-15T08:00:00.000001Z", {"starts": {"intValue": "9007199254740993"}}),
        ("2027-01-15T08:00:00Z", {"state": {"stringValue": "idle"}}),
        ("2027-01-15T08:00:00Z", {"location": {"pointValue": {"latitude": 48.2, "longitude": 16.4}}}),
    ]


SENT = Sent(1_030, Counter({Defect.DUPLICATE: 30, Defect.WRONG_KIND: 5, Defect.UNKNOWN_METRIC: 6}))


def report(durable: int, refused: int) -> Report:
    reasons = Counter({"METRIC_UNKNOWN": 6, "KIND_MISMATCH": refused - 6})
    return Report(1, 10.04, SENT, Outcome(durable, refused, reasons))


def test_a_report_that_adds_up() -> None:
    made = report(durable=1_019, refused=11)
    assert made.problems == []
    assert made.line == (
        "sent 1,030 samples of 1 device in 10.0 s (30 twice, 11 bad): 1,019 durable, "
        "11 refused (5 KIND_MISMATCH, 6 METRIC_UNKNOWN), 0 without an outcome"
    )


@pytest.mark.parametrize(
    ("durable", "refused", "problem"),
    [
        (1_000, 11, "19 samples have no outcome"),
        (1_017, 13, "2 samples were refused that were good"),
        (1_021, 9, "2 samples were taken that were bad"),
    ],
)
def test_a_report_that_does_not_add_up_says_so(durable: int, refused: int, problem: str) -> None:
    (told,) = report(durable, refused).problems
    assert told.startswith(problem)


def test_rates_are_of_the_last_seconds() -> None:
    rates = Rates()
    assert rates.take(0.0, (0, 0)) == (0.0, 0.0)
    assert rates.take(1.0, (10, 0)) == (10.0, 0.0)
    for second in range(2, 11):
        last = rates.take(float(second), (10, second * 5))
    assert last == (0.0, 5.0)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--late", "0.6", "--bad", "0.6"], "more than 1"),
        (["--prefix", "Sim"], "no beginning of an id"),
        (["--over", "json", "--spool", "/tmp/spool"], "only the stream"),
        (["--over", "coap"], "'stream', 'json', 'mqtt'"),
        (["--rate", "0"], "0.001"),
    ],
)
def test_options_that_cannot_be_are_told(arguments: list[str], told: str) -> None:
    done = CliRunner().invoke(app, ["simulate", *arguments], env={"COLUMNS": "200"})
    assert (done.exit_code, done.stdout) == (2, "")
    assert told in done.stderr
