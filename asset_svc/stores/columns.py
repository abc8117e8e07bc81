"""Conversions between the contract's values and columns."""

from __future__ import annotations

from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from google.protobuf.internal.enum_type_wrapper import _EnumTypeWrapper

_V = TypeVar("_V", bound=int)
_ESCAPED = str.maketrans({"\\": r"\\", "%": r"\%", "_": r"\_"})


class EnumText(Generic[_V]):
    """Stores an enum as its names without their prefix, in small letters.

    Args:
        enum: of the contract.
        prefix: of its names, such as "DEVICE_ROLE_".
    """

    def __init__(self, enum: _EnumTypeWrapper[_V], prefix: str) -> None:
        self._enum = enum
        self._prefix = prefix

    def text(self, value: _V) -> str:
        """Return what is stored for a value."""
        return self._enum.Name(value).removeprefix(self._prefix).lower()

    def value(self, text: str) -> _V:
        """Return the value of what is stored."""
        return self._enum.Value(self._prefix + text.upper())

    def wanted(self, value: _V) -> str:
        """Return what a filter asks for: what is stored, "" for UNSPECIFIED."""
        return self.text(value) if value else ""


def containing(search: str) -> str:
    r"""Return the LIKE pattern for text that contains a string, with \ as its escape."""
    return f"%{search.translate(_ESCAPED)}%" if search else ""
