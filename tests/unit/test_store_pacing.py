"""How long batches gather before a commit."""

import pytest

from telemetry_store.pacing import Pause, pause_after

WINDOW_S = 0.004


def after(*, batches: int = 1, samples: int = 1, took_s: float = 0.02) -> Pause | None:
    return pause_after(batches=batches, samples=samples, took_s=took_s, window_s=WINDOW_S)


def test_a_few_small_batches_keep_nobody_waiting() -> None:
    assert after(batches=3, samples=100) is None


def test_a_crowd_of_small_batches_gets_the_window() -> None:
    assert after(batches=50, samples=100, took_s=1) == Pause(WINDOW_S, WINDOW_S)


@pytest.mark.parametrize(("samples", "rest_s"), [(50_000, 0.01), (200_000, 0.04), (500_000, 0.04)])
def test_bulk_rests_in_proportion_to_its_commit_and_its_size(samples: int, rest_s: float) -> None:
    assert after(samples=samples, took_s=0.02) == Pause(rest_s, 0.01)


def test_a_rest_is_bounded() -> None:
    pause = after(samples=1_000_000, took_s=20)
    assert pause is not None
    assert pause.at_most_s == 0.25


def test_bulk_of_a_crowd_rests_no_shorter_than_the_window() -> None:
    assert after(batches=50, samples=4_000, took_s=0.001) == Pause(WINDOW_S, WINDOW_S)
