"""Conversion between units, as two numbers that are used for many values."""

import re
from dataclasses import dataclass
from fractions import Fraction
from functools import cache, lru_cache
from typing import Any

import pint

_REMEMBERED = 10_000
# Names with small exponents, multiplied and divided: what may be given to pint, which else would
# go on to compute 9^9^9^9 for whoever asks.
_NAME = r"[^\W\d_]+|[%°‰](?:[^\W\d_]+)?"
_FACTOR = rf"\(?(?:{_NAME})(?:(?:\^|\*\*)?-?[1-9]|[⁻]?[¹²³])?\)?"
_FORM = re.compile(rf"(?:1/)?{_FACTOR}(?:\s*[*·./ ]\s*{_FACTOR}){{0,5}}")
# m3 and s-1, as UCUM writes exponents.
_BARE_EXPONENT = re.compile(r"(?<=[^\W\d_])(-?[1-9])(?![\d])")


class UnitError(ValueError):
    """A unit is not known, or two do not measure the same; the text says which."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """value in one unit * scale + offset = value in another."""

    scale: float
    offset: float


def conversion(source: str, target: str) -> Conversion:
    """Return how values in one unit become values in another.

    Equal units need not be known: people may measure in anything.

    Args:
        source: such as "°F", "m³/h", "kWh".
        target: likewise.

    Raises:
        UnitError: one is not known, they do not measure the same, only a logarithm leads from one to
            the other, or a factor that no double holds.
    """
    found = _found(source, target)
    if isinstance(found, str):
        raise UnitError(found)
    return found


@lru_cache(maxsize=_REMEMBERED)
def _found(source: str, target: str) -> Conversion | str:
    """Return what is wrong as well, to be remembered: a stream may have the same mistake in all series."""
    try:
        return _find(source, target)
    except UnitError as error:
        return str(error)


def _find(source: str, target: str) -> Conversion:
    if source == target:
        return Conversion(1.0, 0.0)
    known = [_parse(unit) for unit in (source, target)]
    registry = _registry()
    # Not only the dimensions: a turn a minute and a hertz have the same, and pint knows a factor of 2π.
    roots = [registry.get_root_units(unit)[1] for unit in known]
    if roots[0] != roots[1]:
        told = " and ".join(map(_told, (source, target)))
        raise UnitError(f"{told} do not measure the same")
    try:
        offset, one = (
            registry.Quantity(Fraction(point), known[0]).to(known[1]).magnitude for point in (0, 1)
        )
    except (pint.PintError, TypeError) as error:  # Fractions have no logarithm.
        raise UnitError(f"no factor leads from {source!r} to {target!r}") from error
    try:
        found = Conversion(float(one - offset), float(offset))
    except OverflowError:
        found = Conversion(0.0, 0.0)
    if not found.scale:
        raise UnitError(f"no double holds the factor from {source!r} to {target!r}")
    return found


def _told(unit: str) -> str:
    """Return a unit with its full name, if it has one: C is coulomb, and F farad."""
    if not unit:
        return "no unit"
    try:
        return f"{unit!r} ({_registry().get_name(unit)})"
    except Exception:  # As in _parse; composed ones have no name.
        return repr(unit)


def _parse(unit: str) -> Any:
    if unit and not _FORM.fullmatch(unit):
        raise UnitError(f"{unit!r} is not known as a unit")
    try:
        return _registry().parse_units(_BARE_EXPONENT.sub(r"**\1", unit).replace("·", "*"))
    except Exception as error:  # pint's parser, and Python's below it, have many ways to say so.
        raise UnitError(f"{unit!r} is not known as a unit") from error


@cache
def _registry() -> Any:
    """Return the units that are known; made once, since that takes half a second."""
    registry: Any = pint.UnitRegistry(non_int_type=Fraction, autoconvert_offset_to_baseunit=True)
    registry.define("@alias degree_Celsius = Cel")
    return registry
