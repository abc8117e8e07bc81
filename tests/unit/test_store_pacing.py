"""How long batches gather before a commit."""

from telemetry_store.pacing import Pause, pause_after

WINDOW_S = 0.004


def after(*, batches: int = 1, samples: int = 1, took_s: float = 0.02) -> Pause | None:
    return pause_after(batches=batches, samples=samples, took_s=took_s, window_s=WINDOW_S)


def test_a_few_small_batches_keep_nobody_waiting() -> None:
    assert after(batches=3, samples=100) is None


def test_a_crowd_of_small_batches_gets_the_window() -> None:
    assert after(batches=50, samples=100, took_s=1) == Pause(WINDOW_S, WINDOW_S)


def test_bulk_rests_in_proportion_to_its_commit() -> None:
    assert after(samples=100_000, took_s=0.02) == Pause(0.04, 0.01)


def test_a_rest_is_bounded() -> None:
    pause = after(samples=100_000, took_s=20)
    assert pause is not None
    assert pause.at_most_s == 0.25


def test_bulk_of_a_crowd_rests_no_shorter_than_the_window() -> None:
    assert after(batches=50, samples=4_000, took_s=0.001) == Pause(WINDOW_S, WINDOW_S)
