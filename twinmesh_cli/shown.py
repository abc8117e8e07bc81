"""Values as people read them in a terminal."""

from twinmesh.type.v1 import value_pb2


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
