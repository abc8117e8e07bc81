"""How good samples are, beside a model that goes through them one by one."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest_svc.profile import QualityRules
from ingest_svc.quality import judge
from ingest_svc.series_states import NEVER, UNKNOWN, KnownSeries, SeriesStates
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.merge import merge
from telemetry_store.quality import PERFECT, Codes, Quality, is_constant, unpack

NOW = 1_700_000_000_000_000
SECOND = 1_000_000
RULES = {
    1: QualityRules(),
    2: QualityRules(minimum=0.0, maximum=10.0),
    3: QualityRules(interval_us=SECOND),
    4: QualityRules(max_rate=2.0, weights=(0.0, 0.0, 1.0, 0.0)),
    6: QualityRules(anomaly_threshold=math.inf),
    5: QualityRules((0.4, 0.3, 0.2, 0.1), 5 * SECOND, -1.0, 1.0, 2 * SECOND, 0.5),
}
NONE = np.empty(0, np.intp)

Sample = tuple[int, int, float]  # series, seconds before NOW, value


@dataclass
class Model:
    """Judges samples one by one."""

    last: dict[int, tuple[int, float]] = field(default_factory=dict)
    # Where the samples began that were judged last, and what was the last before them.
    again: dict[int, tuple[int, tuple[int, float] | None]] = field(default_factory=dict)

    def judge(self, samples: list[tuple[int, int, float]], received_us: int) -> list[tuple[float, ...]]:
        """Return (score, the four parts) of samples in order, each part in percent."""
        found = []
        before: tuple[int, int, float] | None = None
        for series, time_us, value in samples:
            rules = RULES[series]
            begin_us, last = self.again.get(series, (0, None))
            last = last if begin_us == time_us else self.last.get(series)
            known = [last] if last is not None else []
            if before is not None and before[0] == series:
                known.append(before[1:])
            earlier = [each for each in known if each[0] < time_us]
            completeness = consistency = 20
            if earlier:
                last_us, last_value = max(earlier, key=lambda each: each[0])
                passed = time_us - last_us
                if rules.interval_us and passed > 1.5 * rules.interval_us:
                    completeness = int(20 * rules.interval_us / passed)
                rate = abs(value - last_value) / (passed / SECOND)
                if rate > rules.max_rate:
                    consistency = int(20 * (rules.max_rate / rate))
            validity = 20 if rules.minimum <= value <= rules.maximum else 0
            age = abs(received_us - time_us)
            timeliness = 20
            if received_us and age > rules.timely_us:
                timeliness = int(20 * (rules.timely_us / age))
            parts = (completeness, validity, consistency, timeliness)
            exact = sum(weight * part for weight, part in zip(rules.weights, parts, strict=True)) * 5
            found.append((exact, *(5 * part for part in parts)))
            before = (series, time_us, value)
        for series in {series for series, _, _ in samples}:
            of_series = [(time_us, value) for number, time_us, value in samples if number == series]
            if series not in self.last or of_series[-1][0] > self.last[series][0]:
                self.again[series] = (of_series[0][0], self.last.get(series))
                self.last[series] = of_series[-1]
        return found


def series(number: int, rules: QualityRules, state: bytes | None = None) -> KnownSeries:
    return KnownSeries(number, "acme", "pump-1", f"m{number}", rules, state)


def known(*numbers: int) -> SeriesStates:
    states = SeriesStates()
    states.know([series(number, RULES[number]) for number in numbers])
    return states


def judged(
    states: SeriesStates, samples: list[Sample], *, received_us: int = NOW
) -> tuple[list[tuple[int, int, float]], Codes]:
    """Return samples as they are stored, with (series, time, value), and their codes."""
    columns = KindColumns(
        Kind.DOUBLE,
        np.array([series for series, _, _ in samples], np.int32),
        np.array([NOW - seconds * SECOND for _, seconds, _ in samples], np.int64),
        np.array([value for _, _, value in samples], np.float64),
    )
    runs = merge([columns])
    codes = judge(
        runs,
        states.meet(runs.series),
        states,
        received_us=np.full(len(runs.series), received_us, np.int64),
    )
    series = np.repeat(runs.series, runs.lengths)
    return list(zip(series.tolist(), runs.times.tolist(), runs.values.tolist(), strict=True)), codes


def parts_of(quality: Quality) -> list[tuple[int, ...]]:
    return list(zip(*quality.parts.tolist(), strict=True))


def test_without_rules_all_that_comes_in_time_is_perfect() -> None:
    _, codes = judged(known(1), [(1, second, 1e300 * (-1) ** second) for second in range(60)])
    assert is_constant(codes)
    assert codes[0] == PERFECT
    quality = unpack(codes)
    assert (quality.scores[0], quality.parts[:, 0].tolist(), quality.anomalous[0]) == (100, [100] * 4, False)


@pytest.mark.parametrize(
    ("series", "samples", "score", "parts"),
    [
        (1, [(1, 120, 0.0)], 88, (100, 100, 100, 50)),  # Twice as old as it may be.
        (1, [(1, -120, 0.0)], 88, (100, 100, 100, 50)),  # And of the future.
        (2, [(2, 0, 10.5)], 75, (100, 0, 100, 100)),
        (3, [(3, 10, 0.0), (3, 0, 0.0)], 78, (10, 100, 100, 100)),  # One of ten came.
        (4, [(4, 1, 0.0), (4, 0, 4.0)], 50, (100, 100, 50, 100)),  # Twice as fast as it can.
    ],
)
def test_each_part_falls_for_its_own_reason(
    series: int, samples: list[Sample], score: int, parts: tuple[int, ...]
) -> None:
    _, codes = judged(known(series), samples)
    quality = unpack(codes)
    assert (quality.scores[-1], parts_of(quality)[-1]) == (score, parts)


def test_what_is_not_live_is_not_late() -> None:
    _, codes = judged(known(1), [(1, 10_000, 0.0)], received_us=0)
    assert codes[0] == PERFECT


def usual(series: int, seconds: range) -> list[Sample]:
    return [(series, second, 20 + (second % 7) / 10) for second in seconds]


def test_anomalies_are_flagged_and_cost_no_score() -> None:
    states = known(1, 6)
    judged(states, usual(1, range(300, 30, -1)) + usual(6, range(300, 30, -1)))
    stored, codes = judged(states, [*usual(1, range(30, 10, -1)), (1, 9, 90.0), (1, 8, 20.1), (6, 9, 90.0)])
    quality = unpack(codes)
    flagged = [sample for sample, found in zip(stored, quality.anomalous, strict=True) if found]
    assert [(series, value) for series, _, value in flagged] == [
        (1, 90.0)
    ]  # Of the other metric nothing is an anomaly.
    assert set(quality.scores.tolist()) == {100}


def test_integers_may_be_anomalies_and_text_is_not_looked_at() -> None:
    states = known(1, 2)
    for kind, series, value in ((Kind.INT, 1, 10**6), (Kind.STRING, 2, "broken")):
        sent = [20 + second % 3 for second in range(200)]
        values = [*(sent if kind is Kind.INT else map(str, sent)), value]
        times = NOW + np.arange(len(values), dtype=np.int64) * SECOND
        runs = merge([KindColumns.of(kind, np.full(len(values), series, np.int32), times, values)])
        slots = states.meet(runs.series)
        codes = judge(runs, slots, states, received_us=np.zeros(len(runs.series), np.int64))
        assert np.flatnonzero(unpack(codes).anomalous).tolist() == ([200] if kind is Kind.INT else [])


SAMPLES = st.lists(
    st.tuples(
        st.sampled_from(list(RULES)),
        st.sampled_from([0, 1, 2, 3, 7, 30, 70, 4_000, -3, -90]),
        st.sampled_from([0.0, 0.5, 1.0, 3.0, 10.0, 11.0, -2.0]),
    ),
    min_size=1,
    max_size=30,
)


@given(st.lists(st.tuples(SAMPLES, st.sampled_from([0, NOW, NOW + 20 * SECOND])), min_size=1, max_size=4))
def test_whole_arrays_come_to_what_a_model_comes_to(groups: list[tuple[list[Sample], int]]) -> None:
    states, model = known(*RULES), Model()
    for samples, received_us in groups:
        stored, codes = judged(states, samples, received_us=received_us)
        expected = model.judge(stored, received_us)
        quality = unpack(codes)
        assert parts_of(quality) == [tuple(parts) for _, *parts in expected]
        for score, (exact, *_) in zip(quality.scores.tolist(), expected, strict=True):
            assert math.isclose(score, exact, abs_tol=0.5 + 1e-6)


def test_series_that_nobody_knows_are_judged_without_a_memory() -> None:
    states = known(3)
    assert states.meet(np.array([3, 99], np.int32)).tolist() == [1, UNKNOWN]
    _, codes = judged(states, [(99, 100, 0.0), (99, 0, 0.0)])
    assert unpack(codes).parts[0].tolist() == [100, 100]
    assert states.take_changed(10) == []


def test_states_are_saved_once_and_go_on_elsewhere() -> None:
    states = known(3)
    judged(states, [(3, 10, 7.5)])
    saved = states.take_changed(10)
    (found,) = saved
    assert (found.tenant, found.detector, found.subject, found.time_us) == (
        *("acme", "series", "3", NOW - 10 * SECOND),
    )
    state = found.state
    assert states.take_changed(10) == []
    elsewhere = SeriesStates()
    elsewhere.know([series(3, RULES[3], state)])
    assert judged(elsewhere, [(3, 10, 7.5)])
    assert elsewhere.take_changed(10) == []
    _, codes = judged(elsewhere, [(3, 0, 7.5)])
    assert parts_of(unpack(codes)) == [(10, 100, 100, 100)]


def test_what_is_judged_again_comes_to_the_same() -> None:
    states = known(3, 4)
    judged(states, [(3, 10, 0.0), (4, 10, 0.0)])
    group = [(3, 6, 0.0), (3, 5, 0.0), (4, 6, 80.0), (4, 5, 80.0)]
    first = [judged(states, group)[1].tolist() for _ in range(3)]
    assert first[0] == first[1] == first[2]
    assert parts_of(unpack(judged(states, group[:1])[1])) == [(25, 100, 100, 100)]  # A part of the group.
    assert parts_of(unpack(judged(states, group[2:])[1]))[0] == (100, 100, 10, 100)
    _, codes = judged(states, [(3, 4, 0.0)])
    assert parts_of(unpack(codes)) == [(100, 100, 100, 100)]


def test_the_greatest_doubles_are_compared_without_a_warning() -> None:
    states = known(4)
    _, codes = judged(states, [(4, 9, 1.7e308), (4, 8, -1.7e308), (1, 9, 0.0), (4, 7, -1.7e308)])
    assert unpack(codes).parts[2].tolist() == [100, 100, 0, 100]
    # No sample before it is of series 5: what stands before it in the array is nobody's business.
    states.know([series(5, RULES[4])])
    _, codes = judged(states, [(4, 6, -1.7e308), (5, 6, 1.7e308)])
    assert unpack(codes).parts[2].tolist() == [100, 100]


def test_all_series_have_their_turn_to_be_saved() -> None:
    states = known(1, 2, 3, 4, 5)
    saved = []
    for seconds in range(10, 0, -1):
        judged(states, [(number, seconds, 0.0) for number in range(1, 6)])
        saved += [found.subject for found in states.take_changed(2)]
    assert sorted(saved) == sorted("12345" * 4)


def test_a_detector_goes_on_elsewhere() -> None:
    states = known(1)
    judged(states, usual(1, range(300, 10, -1)))
    (saved,) = states.take_changed(1)
    elsewhere = SeriesStates()
    elsewhere.know([series(1, RULES[1], saved.state)])
    _, codes = judged(elsewhere, [(1, 9, 90.0)])
    assert unpack(codes).anomalous.tolist() == [True]


@pytest.mark.parametrize(
    "numbers",
    [
        *([], [1.0], [math.nan] * 6, [1.0, 2.0, 3.0, math.inf, 5.0, 6.0], [0.0] * 7),
        *([1.0, 2.0, 3.0, -4.0, 5.0, 6.0], [1.0, 2.0, 3.0, 4.0, -5.0, 6.0]),
    ],
)
def test_a_state_of_another_form_is_none(numbers: list[float]) -> None:
    state = np.array(numbers).tobytes()
    states = SeriesStates()
    states.know([series(3, RULES[3], state)])
    assert states.last_times[states.meet(np.array([3], np.int32))].tolist() == [NEVER]


def test_rules_change_and_the_memory_stays() -> None:
    states = known(3)
    judged(states, [(3, 10, 0.0)])
    assert states.rules_of(3) is RULES[3]
    states.know([series(3, RULES[2], bytes(48))])
    assert states.rules_of(3) is RULES[2]
    states.know([series(3, RULES[3])])
    _, codes = judged(states, [(3, 0, 0.0)])
    assert parts_of(unpack(codes)) == [(10, 100, 100, 100)]


def test_series_not_met_for_longest_are_forgotten() -> None:
    states = SeriesStates(most=4)
    for number in (1, 2, 3, 4):
        states.know([series(number, RULES[3])])
        judged(states, [(number, 10, float(number))])
    judged(states, [(1, 9, 1.0)])
    states.know([series(5, RULES[3])])
    assert [number for number in range(1, 6) if states.rules_of(number) is not None] == [1, 4, 5]
    assert {(found.subject, found.time_us) for found in states.take_changed(10)} == {
        ("1", NOW - 9 * SECOND),
        ("4", NOW - 10 * SECOND),
    }


def test_room_grows_with_the_series() -> None:
    states = SeriesStates()
    states.know([series(number, RULES[3]) for number in range(1, 3_000)])
    slots = states.meet(np.arange(1, 3_000, dtype=np.int32))
    assert len(set(slots.tolist())) == 2_999
    assert (states.last_times[slots] < 0).all()
