import json
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import report
from bench.report import Case, Report

REPORT = Report(
    "unary",
    [Case("JSON [jwt]", 1234.5678, "req/s", 1.2345), Case("p95", 0.0125, "s"), Case("loss", -0.5, "%")],
    notes=["ratio to [peer]"],
)


def test_json_is_one_object_with_exact_figures(capsys: pytest.CaptureFixture[str]) -> None:
    REPORT.show(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert set(told) == {"bench", "machine", "commit", "cases"}
    assert told["bench"] == "unary"
    assert told["cases"] == [
        {"name": "JSON [jwt]", "value": 1234.5678, "unit": "req/s", "ratio": 1.2345},
        {"name": "p95", "value": 0.0125, "unit": "s", "ratio": None},
        {"name": "loss", "value": -0.5, "unit": "%", "ratio": None},
    ]


def test_the_table_rounds_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    REPORT.show(as_json=False)
    shown = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in shown.splitlines() if "│" in line]
    assert rows == [
        ["JSON [jwt]", "1,235", "req/s", "1.23"],
        ["p95", "0.0125", "s", ""],
        ["loss", "-0.5", "%", ""],
    ]
    assert "ratio to [peer]" in shown


def test_the_machine_and_the_commit_are_told_without_names() -> None:
    assert re.fullmatch(r"\d+ cores, \d+ GiB, \w+, Python 3\.\d+\.\d+", report.machine())
    # Empty in a copy that is no checkout.
    assert re.fullmatch(r"([0-9a-f]{7,40}\+?)?", report.commit())


@given(st.lists(st.floats(-1e9, 1e9), min_size=1, max_size=50), st.floats(0, 1))
def test_percentiles_lie_between_the_values_they_part(values: list[float], share: float) -> None:
    ordered = sorted(values)
    place = share * (len(ordered) - 1)
    found = report.percentile(values, share)
    slack = 1e-6
    assert ordered[int(place)] - slack <= found <= ordered[min(int(place) + 1, len(ordered) - 1)] + slack


def test_percentiles_that_everybody_knows() -> None:
    assert report.percentile([3, 1, 2], 0) == 1
    assert report.percentile([3, 1, 2], 0.5) == 2
    assert report.percentile([3, 1, 2], 1) == 3
    assert report.percentile([7], 0.95) == 7
    assert report.percentile(range(101), 0.95) == pytest.approx(95)
