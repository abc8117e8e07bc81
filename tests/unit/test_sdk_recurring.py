"""A warning that may come with every batch comes once, and then in summaries."""

from collections import Counter

import pytest

from tests.rpc.ingest.neighbours import until
from twinmesh_client import recurring
from twinmesh_client.recurring import Recurring


async def test_the_first_is_told_at_once_and_the_rest_at_the_end() -> None:
    told: list[Counter[str]] = []
    warnings = Recurring(told.append)
    warnings.note("a", 2)
    assert told == [{"a": 2}]
    warnings.note("a", 3)
    warnings.note("b")
    assert len(told) == 1
    warnings.close()
    assert told[1:] == [{"a": 3, "b": 1}]


async def test_the_rest_is_summed_up_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recurring, "_SUMMARY_S", 0.01)
    told: list[Counter[str]] = []
    warnings = Recurring(told.append)
    for _ in range(3):
        warnings.note("a")
    await until(lambda: len(told) == 2)
    assert told == [{"a": 1}, {"a": 2}]
    # After a while without it the next one is told at once again.
    await until(lambda: warnings._summary is None)
    warnings.note("a")
    assert told[2:] == [{"a": 1}]
    warnings.close()
    assert len(told) == 3
