"""The guide lists every metric that the code makes, as the code makes it."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
PACKAGES = ("meshkit", "telemetry_store", "ingest_svc", "twin_svc", "asset_svc", "auth_svc")
# The API's own names, as people write them.
INSTRUMENTS = {
    f"create_{name.replace(' ', '_').replace('-', '_')}": name
    for name in (
        "counter",
        "up-down counter",
        "histogram",
        "gauge",
        "observable counter",
        "observable up-down counter",
        "observable gauge",
    )
}


def sources() -> Iterator[Path]:
    for package in PACKAGES:
        yield from (ROOT / package).rglob("*.py")


def made(source: Path) -> Iterator[tuple[str, str, str]]:
    """Name, instrument and unit of each metric that a file makes."""
    for call in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if (
            isinstance(call, ast.Call)
            and isinstance(call.func, ast.Attribute)
            and call.func.attr in INSTRUMENTS
        ):
            keywords = {keyword.arg: keyword.value for keyword in call.keywords}
            assert "description" in keywords, f"{source}:{call.lineno}"
            # Anything but a literal could not be told apart here.
            yield (
                ast.literal_eval(call.args[0]),
                INSTRUMENTS[call.func.attr],
                ast.literal_eval(keywords["unit"]),
            )


def rows() -> list[list[str]]:
    lines = re.findall(r"^\| `twinmesh\..*\|$", GUIDE, re.MULTILINE)
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_every_metric_is_in_the_guide_with_its_instrument_and_unit() -> None:
    told = [(name.strip("`"), instrument, unit.strip("`")) for name, instrument, unit, *_ in rows()]
    assert sorted(told) == sorted(metric for source in sources() for metric in made(source))


def test_every_metric_has_a_meaning() -> None:
    assert [row[0] for row in rows() if len(row) != 6 or not row[3] or not row[5]] == []


def test_every_cache_is_in_the_guide() -> None:
    told = set(re.findall(r"^\| `(\w+)` \| [\w ]+ \|", GUIDE, re.MULTILINE))
    observed = {
        keyword.arg
        for source in sources()
        for call in ast.walk(ast.parse(source.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "observe_caches"
        for keyword in call.keywords
    }
    assert told == observed
    assert observed
