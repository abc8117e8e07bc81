"""`twinmesh deadletters`: what was refused, and taking it again."""

import sys
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any

import typer
from google.protobuf import json_format
from rich.table import Table
from rich.text import Text

from twinmesh.ingest.v1 import dead_letter_service_pb2 as contract
from twinmesh.ingest.v1 import dead_letter_service_pb2_grpc as contract_grpc
from twinmesh.type.v1.error_reason_pb2 import ErrorReason
from twinmesh_cli.options import fill_range, time_option
from twinmesh_cli.session import Session, fail, run
from twinmesh_cli.shown import table_console, visible

_PREFIX = "ERROR_REASON_"
_PAGE = 1_000  # the largest that the server gives
_REPLAYED = 100  # in one call
_ID_COLUMNS = 8

deadletters_app = typer.Typer(help="List, read, replay and purge what was refused.", no_args_is_help=True)


def _reason(text: str) -> str:
    name = text.upper().removeprefix(_PREFIX)
    if f"{_PREFIX}{name}" not in ErrorReason.keys():  # noqa: SIM118 - the enum wrapper is no mapping
        raise typer.BadParameter(f"{text!r} is no reason, such as METRIC_UNKNOWN")
    return name


_Device = Annotated[str, typer.Option("--device", help="Only of this device.")]
_Reason = Annotated[
    str | None, typer.Option("--reason", parser=_reason, metavar="REASON", help="Only for this reason.")
]
_Start = Annotated[datetime | None, time_option("Only what came then or later.")]
_End = Annotated[datetime | None, time_option("Only what came before.")]
_Door = Annotated[str, typer.Option(help="Only what came this way: unary, stream or mqtt.")]
_Containing = Annotated[str, typer.Option("--text", help="Only whose message contains this.")]
_Ids = Annotated[list[str] | None, typer.Argument(help="Ids of letters; without any, see the options.")]


@dataclass(frozen=True, slots=True)
class _Chosen:
    """What the options choose."""

    device: str
    reason: str | None
    start: datetime | None
    end: datetime | None
    door: str
    text: str

    def to_filter(self) -> contract.DeadLetterFilter:
        chosen = contract.DeadLetterFilter(device_id=self.device, door=self.door, text=self.text)
        if self.reason is not None:
            chosen.reason = ErrorReason.Value(f"{_PREFIX}{self.reason}")
        fill_range(chosen, self.start, self.end)
        return chosen

    def to_filter_beside(self, ids: list[str], *, all_of_them: bool) -> contract.DeadLetterFilter | None:
        """Return the filter that a command takes instead of ids; nothing at all does not mean everything."""
        chosen = self.to_filter()
        if ids and (chosen.ByteSize() or all_of_them):
            fail("name letters by their ids or by options, not both")
        if not (ids or chosen.ByteSize() or all_of_them):
            fail("name letters by their ids or by options, or say --all")
        return None if ids else chosen


_All = Annotated[bool, typer.Option("--all", help="All letters.")]


@deadletters_app.command("list")
def list_letters(
    device: _Device = "",
    reason: _Reason = None,
    start: _Start = None,
    end: _End = None,
    door: _Door = "",
    text: _Containing = "",
    limit: Annotated[int, typer.Option(min=1, help="At most this many, the newest.")] = 50,
    count: Annotated[bool, typer.Option("--count", help="Only how many, by reason and door.")] = False,
) -> None:
    """Show letters, the newest first."""
    chosen = _Chosen(device, reason, start, end, door, text).to_filter()
    if count:
        _print_counts(run(lambda session: _count(session, chosen)))
        return
    letters, is_whole = run(lambda session: _list(session, chosen, limit))
    _print_letters(letters)
    if not is_whole:
        print(f"there are more than these {limit:,} letters; see --limit and --count", file=sys.stderr)


@deadletters_app.command()
def show(letter_id: Annotated[str, typer.Argument(metavar="ID", help="The letter's id.")]) -> None:
    """Show a letter with what it holds."""
    letter = run(lambda session: _get(session, letter_id))
    table = Table(show_header=False, box=None, pad_edge=False)
    table.add_column(style="bold")
    table.add_column(overflow="fold")
    for name, value in _told(letter):
        table.add_row(name, Text(visible(value)))
    table_console().print(table)
    if letter.text:
        print("\n".join(visible(line) for line in letter.text.splitlines()))
    elif letter.HasField("batch"):
        print(json_format.MessageToJson(letter.batch, indent=1))
    elif letter.payload:
        print(letter.payload.hex())


@deadletters_app.command()
def replay(
    ids: _Ids = None,
    device: _Device = "",
    reason: _Reason = None,
    start: _Start = None,
    end: _End = None,
    door: _Door = "",
    text: _Containing = "",
    everything: _All = False,
    backfill: Annotated[
        str, typer.Option(help="Id of a declared backfill, whose range replaces the live window.")
    ] = "",
) -> None:
    """Take letters again; what is stored leaves them, what fails again stays. May be repeated."""
    chosen = _Chosen(device, reason, start, end, door, text).to_filter_beside(
        ids or [], all_of_them=everything
    )
    answer = run(lambda session: _replay(session, ids or [], chosen, backfill))
    print(
        f"{answer.replayed:,} letters replayed, {answer.stored_samples:,} samples stored; "
        f"{answer.failed:,} failed again, {answer.skipped:,} were gone"
    )
    for failure in answer.failures:
        print(f"  {failure.id} {_name(failure.reason)}: {visible(failure.message)}", file=sys.stderr)
    if answer.failed:
        raise typer.Exit(1)


@deadletters_app.command()
def purge(
    ids: _Ids = None,
    device: _Device = "",
    reason: _Reason = None,
    start: _Start = None,
    end: _End = None,
    door: _Door = "",
    text: _Containing = "",
    everything: _All = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete letters for good."""
    chosen = _Chosen(device, reason, start, end, door, text).to_filter_beside(
        ids or [], all_of_them=everything
    )
    count = run(lambda session: _purge(session, ids or [], chosen, force=False))
    if not count:
        print("there are no such letters")
        return
    if not yes:
        typer.confirm(f"Delete {count:,} letters for good?", abort=True)
    print(f"{run(lambda session: _purge(session, ids or [], chosen, force=True)):,} letters deleted")


def _stub(session: Session) -> Any:
    return contract_grpc.DeadLetterServiceStub(session.channel)


async def _list(
    session: Session, chosen: contract.DeadLetterFilter, limit: int
) -> tuple[list[contract.DeadLetter], bool]:
    """Return up to `limit` letters, and whether that is all of them."""
    request = contract.ListDeadLettersRequest(filter=chosen)
    return await session.listed(
        _stub(session).ListDeadLetters, request, lambda page: page.dead_letters, limit=limit, page_size=_PAGE
    )


async def _count(session: Session, chosen: contract.DeadLetterFilter) -> list[contract.DeadLetterCount]:
    request = contract.CountDeadLettersRequest(filter=chosen)
    return list((await session.call(_stub(session).CountDeadLetters, request)).counts)


async def _get(session: Session, letter_id: str) -> contract.DeadLetter:
    letter: contract.DeadLetter = await session.call(
        _stub(session).GetDeadLetter, contract.GetDeadLetterRequest(id=letter_id)
    )
    return letter


async def _replay(
    session: Session, ids: list[str], chosen: contract.DeadLetterFilter | None, backfill: str
) -> contract.ReplayDeadLettersResponse:
    """Replay call after call, and return what became of all."""
    total = contract.ReplayDeadLettersResponse()
    request = contract.ReplayDeadLettersRequest(filter=chosen, backfill_id=backfill, page_size=_REPLAYED)
    left = list(dict.fromkeys(ids))
    while True:
        request.ids[:], left = left[:_REPLAYED], left[_REPLAYED:]
        answer = await session.call(_stub(session).ReplayDeadLetters, request)
        total.replayed += answer.replayed
        total.failed += answer.failed
        total.skipped += answer.skipped
        total.stored_samples += answer.stored_samples
        total.failures.extend(answer.failures)
        request.page_token = answer.next_page_token
        if not (left or request.page_token):
            return total


async def _purge(
    session: Session, ids: list[str], chosen: contract.DeadLetterFilter | None, *, force: bool
) -> int:
    """Purge call after call, and return how many letters it were."""
    purged: int = 0
    request = contract.PurgeDeadLettersRequest(filter=chosen, force=force)
    left = list(dict.fromkeys(ids))
    while True:
        request.ids[:], left = left[:_PAGE], left[_PAGE:]
        answer: contract.PurgeDeadLettersResponse = await session.call(
            _stub(session).PurgeDeadLetters, request
        )
        purged += answer.purge_count
        if not (left or answer.more):
            return purged


def _print_letters(letters: list[contract.DeadLetter]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("id", "came", "door", "reason", "devices"):
        # What one goes on with must not be cut.
        table.add_column(heading, no_wrap=True, min_width=_ID_COLUMNS if heading == "id" else None)
    table.add_column("samples", justify="right")
    table.add_column("replays", justify="right")
    table.add_column("message", overflow="ellipsis", no_wrap=True)
    for letter in letters:
        table.add_row(
            letter.id,
            _moment(letter),
            letter.door,
            _name(letter.reason),
            _devices(letter),
            f"{letter.sample_count:,}" if letter.sample_count else "",
            f"{letter.replay_count:,}" if letter.replay_count else "",
            Text(visible(letter.message)),
        )
    # Into a file or pipe, less is cut for lack of room.
    table_console().print(table)


def _print_counts(counts: list[contract.DeadLetterCount]) -> None:
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("reason")
    table.add_column("door")
    table.add_column("letters", justify="right")
    table.add_column("samples", justify="right")
    for each in counts:
        table.add_row(_name(each.reason), each.door, f"{each.dead_letters:,}", f"{each.samples:,}")
    table_console().print(table)


def _told(letter: contract.DeadLetter) -> list[tuple[str, str]]:
    """Return what is known of a letter, by names."""
    told = [
        ("id", letter.id),
        ("came", f"{_moment(letter)} by {letter.door}, from {letter.principal}"),
        ("reason", f"{_name(letter.reason)}: {letter.message}"),
        (
            "devices",
            ", ".join(letter.device_ids) + (", …" if letter.device_count > len(letter.device_ids) else ""),
        ),
        ("samples", f"{letter.sample_count:,}" if letter.sample_count else ""),
        ("batch", f"{letter.writer_id} {letter.sequence}" if letter.writer_id else ""),
        ("request", letter.request_id),
        ("message", letter.message_id),
        ("backfill", letter.backfill_id),
        ("trace", letter.trace_id),
        ("replays", f"{letter.replay_count:,} failed" if letter.replay_count else ""),
        ("payload", f"{letter.payload_bytes:,} bytes"),
    ]
    return [(name, value) for name, value in told if value]


def _moment(letter: contract.DeadLetter) -> str:
    return letter.receive_time.ToDatetime().isoformat(sep=" ", timespec="milliseconds")


def _devices(letter: contract.DeadLetter) -> str:
    if not letter.device_ids:
        return ""
    others = letter.device_count - 1
    return f"{letter.device_ids[0]} and {others:,} more" if others else letter.device_ids[0]


def _name(reason: ErrorReason.ValueType) -> str:
    return ErrorReason.Name(reason).removeprefix(_PREFIX)
