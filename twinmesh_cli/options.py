"""Options that several commands take, and how they get into requests."""

from datetime import datetime
from typing import Annotated, Any, Protocol

import typer
from google.protobuf.timestamp_pb2 import Timestamp

from twinmesh_cli.recording import parse_time


class _Ranged(Protocol):
    @property
    def start_time(self) -> Timestamp: ...

    @property
    def end_time(self) -> Timestamp: ...


def parsed_time(text: str) -> datetime:
    """Return the time that an option states."""
    try:
        return parse_time(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a time, such as 2026-03-01T12:00:00Z") from None


def time_option(what: str) -> Any:
    """Return an option that states a time.

    Args:
        what: its help.
    """
    return typer.Option(parser=parsed_time, metavar="TIME", help=what)


def fill_range(request: _Ranged, start: datetime | None, end: datetime | None) -> None:
    """Write those ends of a range that were stated into a request.

    Args:
        request: what has start_time and end_time.
        start: from then on; None: the server's choice.
        end: before then; likewise.
    """
    if start is not None:
        request.start_time.FromDatetime(start)
    if end is not None:
        request.end_time.FromDatetime(end)


Devices = Annotated[list[str], typer.Argument(help="Ids of devices.")]
Metrics = Annotated[list[str] | None, typer.Option(help="Metric; repeatable. Without any: all.")]
Start = Annotated[datetime | None, time_option("From then on, ISO 8601; 24 hours before the end.")]
End = Annotated[datetime | None, time_option("Before then, ISO 8601; now.")]
