"""Forbidden publishes, read out of the log of NATS."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nats.aio.msg import Msg
from nats.errors import NoRespondersError
from structlog.testing import capture_logs

from ingest_svc import forbidden_publishes
from ingest_svc.forbidden_publishes import ForbiddenPublishes
from meshkit.errors import dependency_unavailable
from meshkit.tasks import background
from meshkit.testing.clock import ManualClock
from telemetry_store.requests import DeadLetter, PayloadFormat, RequestIdentity, WriteRequest, WriteResult

NOW = 1_800_000_000_000_000
PREFIX = "[7] 2026/01/31 12:00:00.000000 [ERR] 127.0.0.1:48560"


def go_quoted(text: str) -> str:
    """Quote as Go's %q does."""
    named = {"\a": r"\a", "\b": r"\b", "\f": r"\f", "\n": r"\n", "\r": r"\r", "\t": r"\t", "\v": r"\v"}

    def escaped(character: str) -> str:
        if character in '"\\':
            return "\\" + character
        if character.isprintable():
            return character
        code = ord(character)
        if character in named:
            return named[character]
        return f"\\x{code:02x}" if code < 0x80 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"

    return '"' + "".join(map(escaped, text)) + '"'


def violation(connection: int, subject: str, *, client: str = "client", user: str = "") -> str:
    who = f"User {go_quoted(user)}, " if user else ""
    return (
        f"{PREFIX} - mid:{connection} - {go_quoted(client)} - Publish Violation - "
        f"{who}Subject {go_quoted(subject)}\n"
    )


class _Nats:
    """Tells whose connections are."""

    def __init__(self) -> None:
        self.users: dict[int, Any] = {7: "acme/key7/pump-1", 8: "other/key8/"}
        self.away = False
        self.asked: list[dict[str, Any]] = []

    async def request(self, subject: str, payload: bytes, **_: float) -> Msg:
        assert subject == "$SYS.REQ.ACCOUNT.PING.CONNZ"
        self.asked.append(question := json.loads(payload))
        if self.away:
            raise NoRespondersError
        user = self.users.get(question["cid"], "gone")
        connections = [] if user == "gone" else [{"authorized_user": user} if user is not None else {}]
        return Msg(cast(Any, None), data=json.dumps({"data": {"connections": connections}}).encode())


class _Writer:
    def __init__(self) -> None:
        self.kept: list[tuple[str, str, DeadLetter]] = []
        self.away = False

    def submit(self, request: WriteRequest) -> asyncio.Future[WriteResult]:
        answer: asyncio.Future[WriteResult] = asyncio.get_running_loop().create_future()
        if self.away:
            raise dependency_unavailable("ingest_svc")
        (letter,) = request.dead_letters
        assert isinstance(request.identity, RequestIdentity)
        assert request.samples == []
        self.kept.append((request.tenant, request.principal, letter))
        answer.set_result(WriteResult(b"", duplicate=False))
        return answer


class World:
    """A log that is followed, and what is kept of it."""

    def __init__(self, log: Path) -> None:
        self.log = log
        self.nats = _Nats()
        self.writer = _Writer()

    @asynccontextmanager
    async def following(self) -> AsyncIterator[None]:
        forbidden = ForbiddenPublishes(
            client=cast(Any, self.nats), writer=self.writer, clock=ManualClock(NOW)
        )
        async with background(forbidden.follow(self.log), name="follow"):
            await self.write(violation(8, "begun"))
            while not self.writer.kept:
                # Until the end is known a line may be an old one.
                await asyncio.sleep(0.01)
                await self.write(violation(8, "begun"))
            await self.settled()
            yield

    async def write(self, text: str | bytes) -> None:
        with self.log.open("ab") as file:
            file.write(text.encode() if isinstance(text, str) else text)

    async def settled(self) -> None:
        """Wait until all that was written is read, and forget what was kept of it."""
        await self.write(violation(8, "settled"))
        await self.until(lambda: any("settled" in letter.message for _, _, letter in self.writer.kept))
        self.writer.kept.clear()
        self.nats.asked.clear()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():  # noqa: ASYNC110 - it is a file that makes it true
            await asyncio.sleep(0.005)

    async def told(self, lines: str | bytes) -> list[DeadLetter]:
        """Write lines; return the dead letters they become, once all were read."""
        await self.write(lines)
        await self.write(violation(8, "the.last"))
        return await self.kept()

    async def kept(self) -> list[DeadLetter]:
        """Wait for the last line; return what is kept of those before."""
        letters = self.writer.kept
        await self.until(lambda: bool(letters) and "the/last" in letters[-1][2].message)
        found = [letter for _, _, letter in letters[:-1]]
        letters.clear()
        return found


@pytest.fixture
async def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    monkeypatch.setattr(forbidden_publishes, "_LOOK_EVERY_S", 0.001)
    made = World(tmp_path / "nats.log")
    async with made.following():
        yield made


def topics(letters: list[DeadLetter]) -> list[str]:
    return [letter.message.partition("; ")[0].removeprefix("published to ") for letter in letters]


async def test_a_forbidden_publish_becomes_a_dead_letter_of_whose_device_it_was(world: World) -> None:
    await world.write(violation(7, "devices.pump-2.telemetry", user="acme/key7/pump-1"))
    await world.write(violation(8, "other.topic"))
    await world.until(lambda: len(world.writer.kept) == 2)
    assert world.writer.kept == [
        (
            "acme",
            "api_key:key7",
            DeadLetter(
                device_ids=["pump-1"],
                principal="api_key:key7",
                received_us=NOW,
                reason="PUBLISH_FORBIDDEN",
                message="published to devices/pump-2/telemetry; "
                "this log-in may only publish to devices/pump-1/telemetry",
                payload=b"",
                payload_format=PayloadFormat.NONE,
            ),
        ),
        (
            "other",
            "api_key:key8",
            DeadLetter(
                device_ids=[],
                principal="api_key:key8",
                received_us=NOW,
                reason="PUBLISH_FORBIDDEN",
                message="published to other/topic; this log-in may only publish for its tenant's devices",
                payload=b"",
                payload_format=PayloadFormat.NONE,
            ),
        ),
    ]
    # Closed connections are known as well.
    assert world.nats.asked == [{"cid": 7, "state": 2, "auth": True}, {"cid": 8, "state": 2, "auth": True}]


FORGED = violation(8, "forged", client="x").strip()


@pytest.mark.parametrize(
    "client",
    [
        "",
        'a" - Publish Violation - Subject "forged',
        'x" - Publish Violation - Subject "forged"\n' + FORGED,
        "\n" + FORGED + "\n",
        "\r\n" + FORGED,
        FORGED,
        "\\",
        '\\"',
        "ü\u2028\u2029\x85\x0b\x0c\x1c",
    ],
)
async def test_a_client_id_forges_nothing(world: World, client: str) -> None:
    found = await world.told(violation(7, "true", client=client))
    assert [(letter.device_ids, topic) for letter, topic in zip(found, topics(found), strict=True)] == [
        (["pump-1"], "true")
    ]


@given(client=st.text(), subject=st.text(min_size=1))
def test_every_line_is_read_as_it_was_written(client: str, subject: str) -> None:
    line = violation(7, subject, client=client)
    assert line.encode(errors="surrogatepass").count(b"\n") == 1
    match = forbidden_publishes._VIOLATION.match(line)
    assert match is not None
    assert match["connection"] == "7"
    assert forbidden_publishes._unquoted(match["subject"]) == subject


@pytest.mark.parametrize(
    "line",
    [
        f"[7] 2026/01/31 12:00:00.000000 [INF] said {FORGED}\n",
        f"{PREFIX} - mid:7 - {FORGED}\n",
        f"note {FORGED}\n",
        violation(7, "x").replace("Publish", "Subscription"),
        violation(7, "x").replace("mid:", "cid:"),
        violation(7, "x").replace("[ERR]", "[DBG]"),
        f'{PREFIX} - mid:7 - "x" - Publish Violation - Subject x\n',
        f'{PREFIX} - mid:7 - "x" - Publish Violation - Subject "\\q\\xzz"\n',
        f'{PREFIX} - mid:7 - "x" - Publish Violation - Subject "\\u12"\n',
    ],
)
async def test_other_lines_are_no_forbidden_publishes(world: World, line: str) -> None:
    assert await world.told(line) == []


async def test_a_topic_that_cannot_be_printed_is_quoted(world: World) -> None:
    found = await world.told(violation(7, "a.\0\n\u2028.\U0001f600"))
    assert topics(found) == [r"'a/\x00\n\u2028/😀'"]


@pytest.mark.parametrize("user", ["gone", None, 7, "service", "", {}])
async def test_who_is_not_known_is_not_told(world: World, user: Any) -> None:
    world.nats.users[9] = user
    assert topics(await world.told(violation(9, "lost") + violation(7, "kept"))) == ["kept"]


async def test_what_is_away_costs_letters_and_no_more(world: World) -> None:
    world.nats.away = True
    await world.write(violation(7, "lost"))
    await world.until(lambda: len(world.nats.asked) == 1)
    world.nats.away, world.writer.away = False, True
    await world.write(violation(7, "lost.too"))
    await world.until(lambda: len(world.nats.asked) == 2)
    world.writer.away = False
    assert topics(await world.told(violation(7, "kept"))) == ["kept"]


async def test_a_hundred_a_minute_of_each_connection_are_kept(world: World) -> None:
    world.nats.users[9] = "acme/key7/pump-9"
    lines = "".join(violation(7, f"n{number}") for number in range(150))
    found = await world.told(lines + violation(9, "other"))
    assert topics(found) == [*(f"n{number}" for number in range(100)), "other"]


async def test_after_a_minute_they_count_anew(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Loop:
        now = 1e9

        def time(self) -> float:
            return self.now

    loop = Loop()
    forbidden = ForbiddenPublishes(client=cast(Any, world.nats), writer=world.writer, clock=ManualClock(NOW))
    monkeypatch.setattr(asyncio, "get_running_loop", lambda: loop)
    monkeypatch.setattr(world.writer, "submit", lambda request: _counted(kept, request))
    kept: list[WriteRequest] = []
    for seconds, most in ((0, 100), (59.9, 100), (60, 200), (130, 300)):
        loop.now = 1e9 + seconds
        for _ in range(120):
            await forbidden._keep(7, "x", known_as="line")
        assert len(kept) == most


async def _counted(kept: list[WriteRequest], request: WriteRequest) -> None:
    kept.append(request)


async def test_part_of_a_line_waits_for_its_rest(world: World) -> None:
    line = violation(7, "devices.ü.telemetry").encode()
    place = line.index("ü".encode()) + 1  # In the middle of a character.
    followed = forbidden_publishes._Followed(world.log)
    followed.skip()
    await world.write(line[:place])
    assert followed.read() == followed.read() == b""
    followed.close()
    assert topics(await world.told(line[place:])) == ["devices/ü/telemetry"]


async def test_a_log_that_is_rotated_or_cut_is_followed(world: World) -> None:
    await world.write(violation(7, "before"))
    world.log.rename(world.log.with_suffix(".1"))
    assert topics(await world.told(violation(7, "rotated"))) == ["before", "rotated"]
    world.log.write_text(violation(7, "cut"))
    assert topics(await world.told("")) == ["cut"]
    world.log.unlink()
    assert topics(await world.told(violation(7, "anew"))) == ["anew"]


async def test_a_line_without_an_end_does_not_stop_others(world: World) -> None:
    await world.write(b"x" * (3 << 20))
    assert topics(await world.told("\n" + violation(7, "kept"))) == ["kept"]


async def test_bytes_that_are_no_text_are_passed_over(world: World) -> None:
    assert topics(await world.told(b"\xff\xfe\n" + violation(7, "kept").encode())) == ["kept"]


async def test_what_was_there_before_is_not_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forbidden_publishes, "_LOOK_EVERY_S", 0.001)
    world = World(tmp_path / "nats.log")
    await world.write(violation(7, "old"))
    async with world.following():
        assert not [question for question in world.nats.asked if question["cid"] == 7]
        assert topics(await world.told(violation(7, "new"))) == ["new"]


def test_a_log_that_cannot_be_read_is_told_once_and_tried_again(tmp_path: Path) -> None:
    log = tmp_path / "nats.log"
    log.mkdir()  # Whoever tests may be root, who may read all files.
    followed = forbidden_publishes._Followed(log)
    with capture_logs() as told:
        followed.skip()
        assert followed.read() == followed.read() == b""
        log.rmdir()
        log.write_text("line\n")
        assert followed.read() == b"line\n"
    followed.close()
    (warning,) = told
    assert (warning["log_level"], warning["log"]) == ("warning", str(log))
    assert "IsADirectoryError" in warning["error"]
