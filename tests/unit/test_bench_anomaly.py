"""The benchmarks' measures by hand, and their files as they are published."""

import json
from pathlib import Path

import numpy as np
import pytest

from bench import anomaly
from bench.anomaly_scores import Flags, nab_score, skab_rates

WINDOWS = [(1_000, 1_099), (1_500, 1_599)]


def flags(length: int, *places: int) -> Flags:
    called = np.zeros(length, np.bool_)
    called[list(places)] = True
    return called


def test_skab_counts_the_samples_of_all_files_together() -> None:
    files = [(flags(10, 1, 2, 3), flags(10, 2, 3, 4)), (flags(6, 0), flags(6))]
    rates = skab_rates(files)
    assert rates.f1 == pytest.approx(2 * 2 / (2 * 2 + 1 + 2))
    assert rates.false_alarms == pytest.approx(1 / 12)
    assert rates.missed_alarms == pytest.approx(2 / 4)


def test_nab_gives_100_for_the_first_sample_of_each_window_and_0_for_silence() -> None:
    assert nab_score(flags(2_000), WINDOWS) == 0
    assert nab_score(flags(2_000, 1_000, 1_500), WINDOWS) == pytest.approx(100)
    assert nab_score(flags(2_000, 1_000), WINDOWS) == pytest.approx(50)


def test_nab_counts_a_window_by_its_first_alarm() -> None:
    late = nab_score(flags(2_000, 1_050, 1_500), WINDOWS)
    assert late == nab_score(flags(2_000, 1_050, 1_070, 1_099, 1_500), WINDOWS)
    # Halfway: 2 / (1 + exp(-2.5)) - 1 = 0.84828, of 0.98661 at the beginning.
    assert late == pytest.approx(100 - 25 * (1 - 0.84828 / 0.98661), abs=1e-3)


def test_nab_takes_0_11_for_an_alarm_far_from_windows_and_less_right_behind_one() -> None:
    assert nab_score(flags(2_000, 900), WINDOWS) == pytest.approx(-100 * 0.11 / 4)
    assert nab_score(flags(2_000, 1_450), WINDOWS) == pytest.approx(-100 * 0.11 / 4)
    # One window length behind: 2 / (1 + exp(5)) - 1 = -0.98661.
    assert nab_score(flags(2_000, 1_198), WINDOWS) == pytest.approx(-100 * 0.11 * 0.98661 / 4, rel=1e-4)
    assert -0.1 < nab_score(flags(2_000, 1_100), WINDOWS) < 0


def test_nab_forgives_what_is_said_in_the_probationary_period() -> None:
    assert nab_score(flags(2_000, 0, 299), WINDOWS) == 0
    assert nab_score(flags(2_000, 300), WINDOWS) < 0
    # 15 % of the first 5,000 samples at most.
    assert nab_score(flags(20_000, 749), WINDOWS) == 0
    assert nab_score(flags(20_000, 750), WINDOWS) < 0


def test_files_are_read_as_they_are_published(tmp_path: Path) -> None:
    (tmp_path / "valve1").mkdir()
    (tmp_path / "valve1/0.csv").write_text(
        "datetime;Current;Pressure;anomaly;changepoint\n"
        "2020-03-09 10:14:33;1.5;0.25;0.0;0.0\n"
        "2020-03-09 10:14:34;2.5;0.5;1.0;1.0\n",
        encoding="utf-8",
    )
    (tmp_path / "anomaly-free.csv").write_text(
        "datetime;Current\n2020-02-08 13:30:47;2.0\n", encoding="utf-8"
    )
    unmarked, marked = anomaly.read_skab(tmp_path)
    assert unmarked.anomalous is None
    assert marked.rows.tolist() == [[1.5, 0.25], [2.5, 0.5]]
    assert marked.anomalous is not None
    assert marked.anomalous.tolist() == [False, True]
    assert np.diff(marked.times).tolist() == [1_000_000]

    (tmp_path / "realKnownCause").mkdir()
    (tmp_path / "realKnownCause" / anomaly.NAB_FILE).write_text(
        "timestamp,value\n2013-12-02 21:15:00,73.9\n2013-12-02 21:20:00,74.9\n2013-12-02 21:25:00,76.1\n",
        encoding="utf-8",
    )
    limits = [["2013-12-02 21:20:00.000000", "2013-12-02 21:25:00.000000"]]
    (tmp_path / "combined_windows.json").write_text(
        json.dumps({"other.csv": [], f"realKnownCause/{anomaly.NAB_FILE}": limits}), encoding="utf-8"
    )
    recording, windows = anomaly.read_nab(tmp_path)
    assert recording.rows.tolist() == [[73.9], [74.9], [76.1]]
    assert windows == [(1, 2)]


@pytest.mark.parametrize("read", [anomaly.read_skab, anomaly.read_nab])
def test_a_folder_without_the_files_is_told(read: object, tmp_path: Path) -> None:
    assert callable(read)
    with pytest.raises(FileNotFoundError, match="holds no"):
        read(tmp_path)


def test_what_is_not_named_is_left_out_and_the_report_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BENCH_SKAB", raising=False)
    monkeypatch.delenv("BENCH_NAB", raising=False)
    monkeypatch.setattr(anomaly, "_cost_cases", list)
    report = anomaly.run()
    assert list(report.cases) == []
    assert [note.split(":")[0] for note in report.notes[:2]] == ["SKAB was left out", "NAB was left out"]


def test_a_whole_report_is_made_of_small_recordings(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of a shift by 50 standard deviations that both detectors must find."""
    rows = anomaly.LEARNED + 100
    values = np.random.default_rng(1).normal(size=(rows, 3))
    values[-50:, 0] += 50
    start = np.datetime64("2020-03-09T10:00:00")
    lines = [
        f"{str(start + row).replace('T', ' ')};{';'.join(map(str, of))};{float(row >= rows - 50)}"
        for row, of in enumerate(values.tolist())
    ]
    text = "\n".join(["datetime;a;b;c;anomaly", *lines])
    (tmp_path / "0.csv").write_text(text, encoding="utf-8")
    monkeypatch.setenv("BENCH_SKAB", str(tmp_path))
    monkeypatch.delenv("BENCH_NAB", raising=False)
    monkeypatch.setattr(anomaly, "_cost_cases", list)
    found = {case.name: case.value for case in anomaly.run().cases}
    assert found["SKAB, T² and Q"] > 0.95
    assert found["SKAB, any z-score above 5"] > 0.95
    assert found["SKAB, everything is anomalous"] == pytest.approx(2 / 3)
