"""Conversion between units."""

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit import units
from meshkit.units import Conversion, UnitError, conversion

CONVERTED = [
    ("°F", "°C", 212.0, 100.0),
    ("degC", "K", 0.0, 273.15),
    ("Cel", "°F", -40.0, -40.0),
    ("psi", "bar", 14.5037738, 1.0),
    ("bar", "kPa", 1.0, 100.0),
    ("m³/h", "l/s", 3.6, 1.0),
    ("m3/h", "l/min", 0.06, 1.0),
    ("m s-1", "km/h", 1.0, 3.6),
    ("mm/s", "in/s", 25.4, 1.0),
    ("kWh", "MJ", 1.0, 3.6),
    ("%", "", 50.0, 0.5),
    ("W/(m^2)", "mW/cm²", 10.0, 1.0),
    ("widgets", "widgets", 7.0, 7.0),
]


@pytest.mark.parametrize(("source", "target", "sent", "stored"), CONVERTED)
def test_values_are_converted(source: str, target: str, sent: float, stored: float) -> None:
    there, back = conversion(source, target), conversion(target, source)
    assert sent * there.scale + there.offset == pytest.approx(stored, rel=1e-7)
    assert stored * back.scale + back.offset == pytest.approx(sent, rel=1e-7)


@pytest.mark.parametrize(
    ("source", "target", "why"),
    [
        ("bar", "°C", "'bar' (bar) and '°C' (degree_Celsius) do not measure the same"),
        ("F", "C", "'F' (farad) and 'C' (coulomb) do not measure the same"),
        ("°F", "", "'°F' (degree_Fahrenheit) and no unit do not measure the same"),
        # Both are 1/s to physics, and 2π apart to pint; people mean neither.
        ("rpm", "Hz", "'rpm' (revolutions_per_minute) and 'Hz' (hertz) do not measure the same"),
        ("dBm", "mW", "no factor leads from 'dBm' to 'mW'"),
        ("widgets", "m", "'widgets' is not known as a unit"),
        ("m", "9^9^9^9", "'9^9^9^9' is not known as a unit"),
        ("m^9^9^9^9", "m", "'m^9^9^9^9' is not known as a unit"),
        ("(m", "m", "'(m' is not known as a unit"),
        ("Ym^9*Ym^9", "ym^9*ym^9", "no double holds the factor from 'Ym^9*Ym^9' to 'ym^9*ym^9'"),
        # As a double the factor is 0, and so would be whatever is sent.
        ("ym^9*ym^9", "Ym^9*Ym^9", "no double holds the factor from 'ym^9*ym^9' to 'Ym^9*Ym^9'"),
    ],
)
def test_what_cannot_be_converted_is_named(source: str, target: str, why: str) -> None:
    with pytest.raises(UnitError) as caught:
        conversion(source, target)
    assert str(caught.value) == why


@given(st.text(max_size=32), st.text(st.sampled_from("m9^*/( )·-°C%3²"), max_size=32))
def test_whatever_people_write_is_a_unit_or_not(source: str, target: str) -> None:
    for one, other in ((source, target), (target, "m")):
        with suppress(UnitError):
            assert isinstance(conversion(one, other), Conversion)


def test_a_mistake_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []

    def parse(unit: str) -> None:
        looked_at.append(unit)
        raise UnitError(f"{unit!r} is not known as a unit")

    monkeypatch.setattr(units, "_parse", parse)
    for _ in range(3):
        with pytest.raises(UnitError, match="'gadgets' is not known as a unit"):
            conversion("gadgets", "m")
    assert looked_at == ["gadgets"]
