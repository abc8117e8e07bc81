"""`twinmesh metrics`: the newest values of what the mesh measures."""

import json
import sys
import time
from collections.abc import Sequence
from typing import Annotated, Any, NoReturn

import typer
from rich.live import Live
from rich.table import Table

from twinmesh_cli.home import Home
from twinmesh_cli.metric_store import Histogram, Kept, MetricStore
from twinmesh_cli.settings import load_settings
from twinmesh_cli.shown import table_console
from twinmesh_cli.tail_view import age

_REDRAW_S = 1.0
_NANOS_PER_SECOND = 1_000_000_000


def metrics(
    service: Annotated[str, typer.Option(help="Only of this service, or of one process of it.")] = "",
    watch: Annotated[bool, typer.Option("--watch", help="Go on until Ctrl-C.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON array.")] = False,
) -> None:
    """Print the newest values of metrics."""
    settings = load_settings()
    if settings.otlp_endpoint:
        _fail(f"metrics go to {settings.otlp_endpoint}; look there")
    if watch and (as_json or not sys.stdout.isatty()):
        _fail("--watch draws a table on a terminal")
    try:
        with MetricStore.reading(Home(settings.home).metrics) as store:
            if watch:
                _watch(store, service)
                return
            kept = store.kept(service)
    except FileNotFoundError:
        _fail("no metrics were kept in this home yet; start the mesh with `twinmesh up`")
    if not kept:
        _fail(f"nothing was reported yet{f' by {service}' if service else ''}")
    if as_json:
        print(json.dumps([_plain(each) for each in kept], indent=1))
    else:
        # Into a file or pipe, nothing is cut for lack of room.
        table_console().print(table(kept, now_ns=time.time_ns()))


def _watch(store: MetricStore, service: str) -> None:
    try:
        with Live(auto_refresh=False) as live:
            while True:
                live.update(table(store.kept(service), now_ns=time.time_ns()), refresh=True)
                time.sleep(_REDRAW_S)
    except KeyboardInterrupt:
        return


def table(kept: Sequence[Kept], *, now_ns: int) -> Table:
    """A row for each series; of a distribution the value is how much was measured."""
    drawn = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("metric", "process", "attributes"):
        drawn.add_column(heading, no_wrap=True)
    for heading in ("value", "per second", "p50", "p99", "age"):
        drawn.add_column(heading, justify="right", no_wrap=True)
    drawn.add_column("unit", no_wrap=True)
    for each in kept:
        value = each.newest.value
        p50, p99 = _quantiles(each)
        drawn.add_row(
            each.series.name,
            each.series.process.part,
            " ".join(f"{name}={text}" for name, text in each.series.attributes),
            _shown(value.count if isinstance(value, Histogram) else value),
            _shown(each.rate),
            _shown(p50),
            _shown(p99),
            age((now_ns - each.newest.time_ns) / _NANOS_PER_SECOND),
            each.series.unit,
        )
    return drawn


def _quantiles(kept: Kept) -> tuple[float | None, float | None]:
    value = kept.newest.value
    return (value.quantile(0.5), value.quantile(0.99)) if isinstance(value, Histogram) else (None, None)


def _shown(number: float | None) -> str:
    if number is None:
        return ""
    # Counts whole, and of what is measured three digits that count.
    return f"{number:,.0f}" if number == int(number) or abs(number) >= 1000 else f"{number:.3g}"


def _plain(kept: Kept) -> dict[str, Any]:
    series, value = kept.series, kept.newest.value
    plain: dict[str, Any] = {
        "name": series.name,
        "service": series.process.service,
        "process": series.process.part,
        "instance": series.process.instance,
        "attributes": dict(series.attributes),
        "unit": series.unit,
        "kind": series.kind,
        "time_ns": kept.newest.time_ns,
        "rate": kept.rate,
    }
    if isinstance(value, Histogram):
        p50, p99 = _quantiles(kept)
        return plain | {"count": value.count, "sum": value.total, "p50": p50, "p99": p99}
    return plain | {"value": value}


def _fail(text: str) -> NoReturn:
    print(f"twinmesh: {text}", file=sys.stderr)
    raise typer.Exit(1)
