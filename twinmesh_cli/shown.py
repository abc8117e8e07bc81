"""Values as people read them in a terminal."""

import sys

from rich.console import Console

from twinmesh.type.v1 import value_pb2

_FILE_COLUMNS = 200


def table_console() -> Console:
    """Return where tables go: as wide as the terminal, and wide enough in a file or pipe."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else _FILE_COLUMNS)


def visible(text: str) -> str:
    """Return a device's text so that it cannot steer the terminal."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def spelled(value: object) -> str:
    """Return a value as `twinmesh load` reads it, to the last digit."""
    if isinstance(value, value_pb2.Point):
        position = f"{value.latitude!r} {value.longitude!r}"
        return f"{position} {value.altitude!r}" if value.HasField("altitude") else position
    if isinstance(value, bool):
        return str(value).lower()
    return repr(value) if isinstance(value, float) else str(value)
