"""`twinmesh deadletters`: what its options choose, and what it asks before it deletes."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from typer.testing import CliRunner, Result

from twinmesh.ingest.v1 import dead_letter_service_pb2 as contract
from twinmesh.ingest.v1 import dead_letter_service_pb2_grpc as contract_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli.main import app


class FakeLetters(contract_grpc.DeadLetterServiceServicer):
    """Answers what it was told to, and keeps what it was asked."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.letters: list[contract.DeadLetter] = []
        self.pages = 1

    def ListDeadLetters(self, request: Any, context: Any) -> contract.ListDeadLettersResponse:
        self.asked.append(request)
        return contract.ListDeadLettersResponse(dead_letters=self.letters, next_page_token="more")

    def CountDeadLetters(self, request: Any, context: Any) -> contract.CountDeadLettersResponse:
        self.asked.append(request)
        count = contract.DeadLetterCount(
            reason=ErrorReason.ERROR_REASON_METRIC_UNKNOWN, door="mqtt", dead_letters=1234, samples=5
        )
        return contract.CountDeadLettersResponse(counts=[count])

    def ReplayDeadLetters(self, request: Any, context: Any) -> contract.ReplayDeadLettersResponse:
        self.asked.append(request)
        self.pages -= 1
        token = "next" if self.pages and not request.ids else ""
        return contract.ReplayDeadLettersResponse(replayed=2, stored_samples=3, next_page_token=token)

    def PurgeDeadLetters(self, request: Any, context: Any) -> contract.PurgeDeadLettersResponse:
        self.asked.append(request)
        if request.force:
            self.pages -= 1
        return contract.PurgeDeadLettersResponse(purge_count=7, more=request.force and self.pages > 0)


@pytest.fixture
def letters(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLetters]:
    fake = FakeLetters()
    server = grpc.server(ThreadPoolExecutor(1))
    contract_grpc.add_DeadLetterServiceServicer_to_server(fake, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    monkeypatch.setenv("TWINMESH_GATEWAY", f"127.0.0.1:{port}")
    monkeypatch.setenv("TWINMESH_API_KEY", "tmk_demo_1_x")
    yield fake
    server.stop(0).wait()


def deadletters(*arguments: str, typed: str = "") -> Result:
    return CliRunner().invoke(app, ["deadletters", *arguments], input=typed)


def test_options_become_a_filter(letters: FakeLetters) -> None:
    done = deadletters(
        *("list", "--count", "--device", "pump-1", "--reason", "metric_unknown", "--door", "mqtt"),
        *("--text", "colour", "--start", "2026-03-01", "--end", "2026-03-02T12:00:00+01:00"),
    )
    assert done.exit_code == 0, done.output
    assert "1,234" in done.output
    (asked,) = letters.asked
    assert asked.filter == contract.DeadLetterFilter(
        device_id="pump-1",
        reason=ErrorReason.ERROR_REASON_METRIC_UNKNOWN,
        door="mqtt",
        text="colour",
        start_time=Timestamp(seconds=1_772_323_200),
        end_time=Timestamp(seconds=1_772_449_200),
    )


def test_letters_are_listed_so_that_no_text_of_a_device_steers_the_terminal(letters: FakeLetters) -> None:
    letters.letters = [
        contract.DeadLetter(id="7", device_ids=["a"], device_count=3, message="\x1b[2J", sample_count=12)
    ]
    done = deadletters("list", "--limit", "1")
    assert done.exit_code == 0, done.output
    assert "a and 2 more" in done.output
    assert "\x1b" not in done.output
    assert "more than these 1 letters" in done.stderr


@pytest.mark.parametrize("command", ["replay", "purge"])
@pytest.mark.parametrize("arguments", [[], ["7", "--all"], ["7", "--device", "a"]])
def test_nothing_is_chosen_by_accident(letters: FakeLetters, command: str, arguments: list[str]) -> None:
    done = deadletters(command, *arguments, *(["--yes"] if command == "purge" else []))
    assert done.exit_code == 1
    assert "by their ids or by options" in done.stderr
    assert letters.asked == []


def test_a_reason_that_nobody_knows_is_told(letters: FakeLetters) -> None:
    done = deadletters("list", "--reason", "nonsense")
    assert done.exit_code == 2
    assert "is no reason" in done.stderr


def test_a_replay_goes_on_to_the_last_page(letters: FakeLetters) -> None:
    letters.pages = 3
    done = deadletters("replay", "--all", "--backfill", "bf-1")
    assert done.exit_code == 0, done.output
    assert "6 letters replayed, 9 samples stored" in done.output
    assert [request.page_token for request in letters.asked] == ["", "next", "next"]
    assert {request.backfill_id for request in letters.asked} == {"bf-1"}


def test_many_ids_are_replayed_in_calls_of_a_hundred(letters: FakeLetters) -> None:
    deadletters("replay", *map(str, range(250)))
    assert [len(request.ids) for request in letters.asked] == [100, 100, 50]
    assert not any(request.HasField("filter") for request in letters.asked)


def test_a_purge_asks_first_and_goes_on_to_the_end(letters: FakeLetters) -> None:
    assert deadletters("purge", "--door", "mqtt", typed="n\n").exit_code == 1
    assert [request.force for request in letters.asked] == [False]
    letters.pages = 2
    done = deadletters("purge", "--door", "mqtt", typed="y\n")
    assert "Delete 7 letters for good?" in done.output
    assert "14 letters deleted" in done.output
