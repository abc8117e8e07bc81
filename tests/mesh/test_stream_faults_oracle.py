"""The oracle of the fault tests notices what it is there for."""

from collections import Counter

import pytest

from tests.mesh.oracle import Oracle, Sample, Sent


def samples(*times: int) -> list[Sample]:
    return [Sample("pump-1", "temperature", time_us, time_us / 2) for time_us in times]


@pytest.fixture
def oracle() -> Oracle:
    return Oracle()


def send(oracle: Oracle, sequence: int, *times: int, acknowledged: bool = True) -> Sent:
    sent = oracle.sends(samples(*times), ("w", sequence))
    if acknowledged:
        oracle.acknowledge(sent)
    return sent


@pytest.mark.parametrize("stored", [samples(1, 2, 3), samples(1, 2, 3, 4, 5)])
def test_what_was_not_acknowledged_may_be_stored_or_not(oracle: Oracle, stored: list[Sample]) -> None:
    send(oracle, 1, 1, 2)
    send(oracle, 2, 3)
    send(oracle, 3, 4, 5, acknowledged=False)
    oracle.compare(Counter(stored))
    assert not oracle.everything_acknowledged()


@pytest.mark.parametrize(
    ("stored", "complaint"),
    [
        (samples(1, 2), "acknowledged batches are lost"),
        (samples(1, 2, 3, 3), "stored twice"),
        (samples(1, 2, 3, 4), "stored in part"),
        (samples(1, 2, 3, 9), "never sent"),
        (samples(1, 2, 3, 6), "stored with two contents"),
        ([*samples(1, 2), Sample("pump-1", "temperature", 3, 0.0)], "acknowledged batches are lost"),
    ],
)
def test_what_is_wrong_is_named(oracle: Oracle, stored: list[Sample], complaint: str) -> None:
    send(oracle, 1, 1, 2)
    send(oracle, 2, 3)
    send(oracle, 2, 6, acknowledged=False)
    send(oracle, 3, 4, 5, acknowledged=False)
    with pytest.raises(AssertionError, match=complaint):
        oracle.compare(Counter(stored))


def test_nothing_sent_shows_nothing(oracle: Oracle) -> None:
    with pytest.raises(AssertionError, match="nothing was sent"):
        oracle.compare(Counter())
