"""`twinmesh tail`: what a watch has told is kept as its contract says, and shown."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from rich.console import Console
from tenacity import RetryCallState

from meshkit.clock import MICROS_PER_SECOND
from twinmesh.twin.v1 import twin_service_pb2 as contract
from twinmesh.twin.v1.twin_service_pb2_grpc import TwinServiceServicer, add_TwinServiceServicer_to_server
from twinmesh.type.v1 import error_reason_pb2, value_pb2
from twinmesh_cli.following import Following
from twinmesh_cli.session import ClientSettings, Session
from twinmesh_cli.tail_view import LineView, TableView, age, json_line, text_line
from twinmesh_cli.watched import Metric, Told, Watched, What

Response = contract.WatchTwinsResponse
SECOND = MICROS_PER_SECOND
START_US = 1_800_000_000 * SECOND
ONLINE, OFFLINE = contract.CONNECTIVITY_ONLINE, contract.CONNECTIVITY_OFFLINE


def twin(
    device: str,
    *,
    at: int = 0,
    connectivity: contract.Connectivity.ValueType = ONLINE,
    **metrics: float,
) -> contract.Twin:
    made = contract.Twin(id=device, connectivity=connectivity)
    for name, value in metrics.items():
        made.metrics[name].value.double_value = value
        made.metrics[name].time.FromMicroseconds(START_US + at * SECOND)
        made.metrics[name].unit = "°C"
    return made


def snapshot(*twins: contract.Twin) -> Response:
    return Response(snapshot=contract.Snapshot(twins=twins))


def snapshot_end(token: str) -> Response:
    return Response(snapshot_end=contract.SnapshotEnd(resume_token=token))


def change(*twins: contract.Twin) -> Response:
    return Response(change=contract.Change(twins=twins))


def enter(*twins: contract.Twin) -> Response:
    return Response(enter=contract.Enter(twins=twins))


def bookmark(token: str) -> Response:
    return Response(bookmark=contract.Bookmark(resume_token=token))


GAP = Response(gap=contract.Gap(reason=contract.GAP_REASON_EXPIRED))


def end(token: str) -> Response:
    reason = error_reason_pb2.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    return Response(end=contract.End(reason=reason, message="stopping", resume_token=token))


def taken(watched: Watched, *responses: Response) -> list[tuple[str, ...]]:
    return [
        (told.what, told.device, told.name) if told.name else (told.what, told.device)
        for response in responses
        for told in watched.take(response)
    ]


def values(watched: Watched) -> dict[str, float]:
    return {f"{device}/{name}": metric.value for (device, name), metric in watched.metrics.items()}


@pytest.fixture
def watched() -> Watched:
    """A watch of two devices whose snapshot has ended."""
    begun = Watched()
    begun.begin()
    begun.take(snapshot(twin("b", t=1, at=1), twin("a", t=2, at=0)))
    begun.take(snapshot_end("one"))
    return begun


def test_a_snapshot_is_known_when_it_has_ended_latest_last(watched: Watched) -> None:
    assert list(values(watched).items()) == [("a/t", 2), ("b/t", 1)]
    assert (watched.resume_token, watched.is_whole) == ("one", True)


def test_a_change_tells_and_keeps_what_it_names_and_nothing_else(watched: Watched) -> None:
    assert taken(watched, change(twin("a", u=5, at=2))) == [("value", "a", "u")]
    assert taken(watched, change(twin("a", t=2, at=0))) == [], "it was known"
    assert taken(watched, bookmark("two")) == []
    assert list(values(watched).items()) == [("a/t", 2), ("b/t", 1), ("a/u", 5)]
    assert watched.resume_token == "two"


def test_what_changed_last_is_last(watched: Watched) -> None:
    watched.take(change(twin("a", t=3, at=9), twin("b", t=4, at=8)))
    assert list(values(watched)) == ["b/t", "a/t"]


def test_a_device_that_stops_to_report_is_told_once(watched: Watched) -> None:
    assert taken(watched, change(twin("a", connectivity=OFFLINE))) == [("connectivity", "a")]
    assert taken(watched, change(twin("a", connectivity=OFFLINE))) == []
    assert watched.online == {"a": False, "b": True}
    assert values(watched)["a/t"] == 2


def test_twins_enter_whole_and_leave_whole(watched: Watched) -> None:
    assert taken(watched, Response(leave=contract.Leave(ids=["a", "never-seen"]))) == [("leave", "a")]
    assert (values(watched), watched.online) == ({"b/t": 1}, {"b": True})
    assert taken(watched, enter(twin("a", u=7))) == [("value", "a", "u")]
    assert values(watched) == {"b/t": 1, "a/u": 7}
    watched.take(enter(twin("a", t=8)))
    assert values(watched) == {"b/t": 1, "a/t": 8}, "what entered is all there is of it"


def test_a_resumed_watch_keeps_metrics_of_twins_that_are_named_and_drops_the_others(watched: Watched) -> None:
    watched.begin()
    assert taken(watched, snapshot(twin("b"), twin("c", t=3))) == [("value", "c", "t")]
    assert taken(watched, snapshot_end("two")) == [("leave", "a")]
    assert values(watched) == {"b/t": 1, "c/t": 3}
    assert watched.online.keys() == {"b", "c"}


def test_nothing_is_dropped_by_a_snapshot_that_breaks_off(watched: Watched) -> None:
    watched.begin()
    watched.take(snapshot(twin("b")))
    watched.begin()
    assert watched.resume_token == "one"
    assert values(watched) == {"a/t": 2, "b/t": 1}
    watched.take(snapshot(twin("a")))
    assert taken(watched, snapshot_end("two")) == [("leave", "b")], "named in the watch that broke off only"


def test_after_a_gap_the_snapshot_is_all_there_is(watched: Watched) -> None:
    watched.take(change(twin("b", u=9)))
    watched.begin()
    assert taken(watched, GAP) == [("gap", "")]
    # In two parts: the second one adds to the first.
    told = taken(watched, snapshot(twin("b", t=1, at=1)), snapshot(twin("b", v=5)), snapshot_end("two"))
    assert told == [("value", "b", "v"), ("leave", "a")]
    assert values(watched) == {"b/t": 1, "b/v": 5}


def test_a_gap_in_a_watch_that_goes_on_takes_nothing_away(watched: Watched) -> None:
    assert taken(watched, GAP, change(twin("b", u=9))) == [("gap", ""), ("value", "b", "u")]
    watched.begin()
    told = taken(watched, snapshot(twin("a"), twin("b")), snapshot_end("two"))
    assert (told, values(watched)) == ([], {"a/t": 2, "b/t": 1, "b/u": 9})


def test_the_last_word_says_where_to_go_on(watched: Watched) -> None:
    watched.take(end("two"))
    assert watched.resume_token == "two"
    watched.take(end(""))
    assert watched.resume_token == "two"


class Scripted(TwinServiceServicer):
    """A twin_svc whose watches go as written; each ends with the script's last word."""

    def __init__(self, *watches: Sequence[Response | grpc.StatusCode | None]) -> None:
        self._watches: Iterator[Sequence[Response | grpc.StatusCode | None]] = iter(watches)
        self.asked: list[tuple[str, str]] = []

    async def WatchTwins(self, request: Any, context: Any) -> AsyncIterator[Response]:
        authorization = str(dict(context.invocation_metadata())["authorization"])
        self.asked.append((request.resume_token, authorization))
        for step in next(self._watches):
            if isinstance(step, grpc.StatusCode):
                await context.abort(step, "as written")
            elif step is None:
                await asyncio.Event().wait()
            else:
                yield step


class Seen:
    """What a following told."""

    def __init__(self) -> None:
        self.told: list[Told] = []
        self.lost: list[str] = []
        self._news = asyncio.Event()

    def on_told(self, told: Sequence[Told]) -> None:
        self.told += told
        self._news.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            self._news.clear()
            await self._news.wait()


@asynccontextmanager
async def following(
    script: Scripted, seen: Seen, watched: Watched, *, silence_s: float = 30.0
) -> AsyncIterator["asyncio.Task[None]"]:
    server = grpc.aio.server()
    add_TwinServiceServicer_to_server(script, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    settings = ClientSettings(gateway=f"127.0.0.1:{port}", api_key="key")
    async with grpc.aio.insecure_channel(settings.gateway) as channel:
        followed = Following(
            session=Session(channel=channel, settings=settings),
            request=contract.WatchTwinsRequest(),
            watched=watched,
            on_told=seen.on_told,
            on_lost=seen.lost.append,
            silence_s=silence_s,
        )
        task = asyncio.create_task(followed.run())
        yield task
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    await server.stop(None)


WHOLE = (snapshot(twin("a", t=1)), snapshot_end("one"))


@pytest.mark.parametrize(
    ("breaks", "why"),
    [
        ([end("two"), grpc.StatusCode.UNAVAILABLE], "as written"),
        ([bookmark("two"), grpc.StatusCode.INTERNAL], "as written"),
        ([bookmark("two"), grpc.StatusCode.UNAUTHENTICATED], "as written"),
        ([bookmark("two")], "the watch ended"),
        ([bookmark("two"), None], "nothing was heard for 0.3 s"),
    ],
    ids=["stop", "broken", "expired", "end", "silence"],
)
async def test_what_is_lost_is_resumed_behind_the_token(
    breaks: list[Response | grpc.StatusCode | None], why: str
) -> None:
    script = Scripted((*WHOLE, *breaks), (snapshot(twin("a"), twin("b", t=2)), snapshot_end("three"), None))
    seen, watched = Seen(), Watched()
    async with following(script, seen, watched, silence_s=0.3 if breaks[-1] is None else 30.0):
        await seen.until(lambda: watched.resume_token == "three")
    assert script.asked[:2] == [("", "Bearer key"), ("two", "Bearer key")]
    assert seen.lost[0] == why
    assert values(watched) == {"a/t": 1, "b/t": 2}


async def test_a_service_that_stays_away_is_asked_again_ever_more_seldom_until_it_is_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[int] = []

    def wait(**_: float) -> Callable[[RetryCallState], float]:
        def waited(state: RetryCallState) -> float:
            waits.append(state.attempt_number)
            return 0

        return waited

    monkeypatch.setattr("twinmesh_cli.following.wait_random_exponential", wait)
    away = (grpc.StatusCode.UNAVAILABLE,)
    script = Scripted((*WHOLE, *away), away, away, (snapshot(twin("a", t=5)), snapshot_end("two"), None))
    seen, watched = Seen(), Watched()
    async with following(script, seen, watched):
        await seen.until(lambda: watched.resume_token == "two")
    assert [token for token, _ in script.asked[:4]] == ["", "one", "one", "one"]
    assert waits[:3] == [1, 2, 3]
    assert values(watched) == {"a/t": 5}


@pytest.mark.parametrize(
    ("watches", "code"),
    [
        # At first everything is told: there is somebody who can mend it.
        ([(grpc.StatusCode.UNAVAILABLE,)], grpc.StatusCode.UNAVAILABLE),
        ([(grpc.StatusCode.UNAUTHENTICATED,)], grpc.StatusCode.UNAUTHENTICATED),
        # The next credential is no better.
        (
            [(*WHOLE, grpc.StatusCode.UNAUTHENTICATED), (grpc.StatusCode.UNAUTHENTICATED,)],
            grpc.StatusCode.UNAUTHENTICATED,
        ),
        ([(*WHOLE, grpc.StatusCode.PERMISSION_DENIED)], grpc.StatusCode.PERMISSION_DENIED),
        ([(*WHOLE, grpc.StatusCode.INVALID_ARGUMENT)], grpc.StatusCode.INVALID_ARGUMENT),
    ],
)
async def test_what_cannot_be_resumed_ends_it(watches: list[Any], code: grpc.StatusCode) -> None:
    script, seen = Scripted(*watches), Seen()
    async with following(script, seen, Watched()) as task:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await task
    assert caught.value.code() is code
    assert len(script.asked) == len(watches)


POINT = value_pb2.Point(latitude=1.5, longitude=-2)
LINES = [
    (
        Told(What.VALUE, "a", "t", Metric(0.1, "°C", START_US), is_online=True),
        {"event": "value", "device": "a", "metric": "t", "value": 0.1, "unit": "°C", "online": True},
        "2027-01-15T08:00:00Z a t 0.1 °C",
    ),
    (
        Told(What.VALUE, "a", "n", Metric(2**53 + 1, "", START_US)),
        {"event": "value", "device": "a", "metric": "n", "value": 2**53 + 1, "unit": "", "online": None},
        "2027-01-15T08:00:00Z a n 9007199254740993",
    ),
    (
        Told(What.VALUE, "a", "location", Metric(POINT, "", START_US)),
        {
            "event": "value",
            "device": "a",
            "metric": "location",
            "value": {"latitude": 1.5, "longitude": -2.0},
            "unit": "",
            "online": None,
        },
        "2027-01-15T08:00:00Z a location 1.5 -2.0",
    ),
    (
        Told(What.CONNECTIVITY, "a", is_online=False),
        {"event": "connectivity", "device": "a", "online": False},
        "a is offline",
    ),
    (Told(What.LEAVE, "a"), {"event": "leave", "device": "a"}, "a left"),
]


@pytest.mark.parametrize(("told", "as_json", "as_text"), LINES)
def test_lines(told: Told, as_json: dict[str, Any], as_text: str) -> None:
    line = json.loads(json_line(told))
    assert line.pop("time", None) == ("2027-01-15T08:00:00Z" if told.metric else None)
    assert line == as_json
    assert text_line(told) == as_text


def test_lines_obey_nothing_that_devices_send() -> None:
    told = Told(What.VALUE, "a", "state", Metric("\x1b[2J\n", "\x1b", START_US))
    assert text_line(told) == r"2027-01-15T08:00:00Z a state \x1b[2J\n \x1b"
    assert "\x1b" not in json_line(told)


def test_a_selection_that_fits_nothing_says_that_it_waits(capsys: pytest.CaptureFixture[str]) -> None:
    watched, out = Watched(), io.StringIO()
    view = LineView(watched, out, as_json=True)
    watched.begin()
    view.show(watched.take(snapshot_end("one")))
    view.show(watched.take(bookmark("two")))
    assert capsys.readouterr().err == "no device fits so far; waiting for one\n"
    view.show(watched.take(enter(twin("a", t=1))))
    assert json.loads(out.getvalue())["device"] == "a"
    assert capsys.readouterr().err == ""


def shown(view: TableView, console: Console, *, after_s: float) -> list[str]:
    with console.capture() as capture:
        console.print(view.picture(START_US / SECOND + after_s))
    return [line.rstrip() for line in capture.get().splitlines()]


def test_the_table_fits_the_terminal_latest_first() -> None:
    watched, console = Watched(), Console(width=90, height=6)
    view = TableView(watched, console)
    assert "waiting for the gateway" in shown(view, console, after_s=0)[-1]
    watched.begin()
    watched.take(snapshot(*(twin(f"d{number}", t=number, at=number) for number in range(9))))
    watched.take(snapshot_end("one"))
    view.show(watched.take(change(twin("d4", t=40.5, at=70, connectivity=OFFLINE))))
    lines = shown(view, console, after_s=75)
    assert len(lines) <= 6
    assert [line.split() for line in lines[1:4]] == [
        ["d4", "t", "40.5", "°C", "5", "s", "offline"],
        ["d8", "t", "8.0", "°C", "1", "min", "online"],
        ["d7", "t", "7.0", "°C", "1", "min", "online"],
    ]
    assert lines[-1] == "9 devices, 6 more values"
    view.lost("UNAVAILABLE: gone")
    assert "connection lost, resuming: UNAVAILABLE: gone" in shown(view, console, after_s=75)[-1]
    view.show([Told(What.GAP)])
    assert shown(view, console, after_s=75)[-1] == "9 devices, 6 more values, 1 gap"


def test_ages_are_told_in_the_largest_unit() -> None:
    ages = [age(seconds) for seconds in (-1, 0, 59.9, 60, 3599, 3600, 86_399, 86_400 * 3)]
    assert ages == ["ahead", "0 s", "59 s", "1 min", "59 min", "1 h", "23 h", "3 d"]
