"""`twinmesh trace`: one trace as a waterfall, with the traces that links tie to it."""

import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Annotated, NoReturn

import typer
from rich.table import Table
from rich.text import Text

from twinmesh_cli.home import Home
from twinmesh_cli.settings import load_settings
from twinmesh_cli.shown import table_console
from twinmesh_cli.traces import Span, TraceStore, TraceView

_ID = re.compile(r"[0-9a-f]{4,32}")
_BAR_CELLS = 30
_POLL_SECONDS = 0.25


def trace(
    trace_id: Annotated[str, typer.Argument(help="The id from an answer's x-trace-id, or how it begins.")],
    wait: Annotated[float, typer.Option(help="Seconds to wait for spans still on their way.", min=0)] = 5.0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Print a trace as a waterfall, and the traces that are linked to it."""
    settings = load_settings()
    if settings.otlp_endpoint:
        _fail(f"traces go to {settings.otlp_endpoint}; look there")
    wanted = trace_id.strip().lower()
    if not _ID.fullmatch(wanted):
        _fail(f"{trace_id!r} is no trace id: 4 to 32 hexadecimal digits are expected")
    try:
        with TraceStore.reading(Home(settings.home).traces) as store:
            view = _wait_for(store, wanted, seconds=wait)
    except FileNotFoundError:
        _fail("no traces were kept in this home yet; start the mesh with `twinmesh up`")
    if view is None:
        _fail(f"no span of trace {wanted} is known; only the latest are kept")
    if as_json:
        print(json.dumps(asdict(view), indent=1))
    else:
        _print(view)


def _wait_for(store: TraceStore, wanted: str, *, seconds: float) -> TraceView | None:
    """The view, as soon as no span's parent is missing, or as it is when time is up."""
    deadline = time.monotonic() + seconds
    while True:
        matches = store.matching(wanted)
        if len(matches) > 1:
            _fail(f"{wanted} begins several trace ids: {', '.join(matches)}")
        view = store.view(matches[0]) if matches else None
        if time.monotonic() >= deadline or (view is not None and _is_whole(view.spans)):
            return view
        time.sleep(_POLL_SECONDS)


def _is_whole(spans: Sequence[Span]) -> bool:
    known = {span.span_id for span in spans}
    return all(not span.parent_id or span.parent_id in known for span in spans)


def _print(view: TraceView) -> None:
    console = table_console()
    console.print(f"trace [bold]{view.trace_id}[/bold]  {len(view.spans)} spans")
    begin = min(span.start_ns for span in view.spans)
    console.print(waterfall(view.spans, begin_ns=begin))
    for spans in view.linked:
        console.print()
        console.print(f"[bold]linked[/bold] trace {spans[0].trace_id}  {_how(view, spans)}")
        # On the first trace's clock, so that the two can be read together.
        console.print(waterfall(spans, begin_ns=begin))
    if view.more_linked:
        console.print(f"\nand {view.more_linked} more linked traces")


def _how(view: TraceView, spans: Sequence[Span]) -> str:
    names = {span.span_id: span.name for span in view.spans}
    for span in spans:
        for link in span.links:
            if link.trace_id == view.trace_id:
                return f"its span {span.name} carries {names.get(link.span_id, link.span_id)} of this trace"
    carrier = next(
        (span.name for span in view.spans for link in span.links if link.trace_id == spans[0].trace_id),
        "a span",
    )
    return f"carried by {carrier} of this trace"


def waterfall(spans: Sequence[Span], *, begin_ns: int) -> Table:
    """A row for each span, indented below its parent; offsets in milliseconds from `begin_ns`."""
    first = min(span.start_ns for span in spans)
    length = max(max(span.end_ns for span in spans) - first, 1)
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("start ms", justify="right", min_width=8)
    table.add_column("took ms", justify="right", min_width=8)
    table.add_column("service", no_wrap=True, min_width=11)
    table.add_column("span", no_wrap=True, ratio=1)
    table.add_column("", no_wrap=True, overflow="crop")
    for depth, span in in_tree_order(spans):
        name = Text("  " * depth + span.name, style="red" if span.failed else "")
        if span.links:
            name.append(f"  → {len(span.links)} linked", style="dim")
        table.add_row(
            f"{(span.start_ns - begin_ns) / 1e6:.2f}",
            f"{(span.end_ns - span.start_ns) / 1e6:.2f}",
            span.service,
            name,
            _bar(span, first_ns=first, length_ns=length),
        )
    return table


def in_tree_order(spans: Sequence[Span]) -> Iterator[tuple[int, Span]]:
    """Depth and span, parents before children, each level by start; orphans stand at the root."""
    known = {span.span_id for span in spans}
    children: dict[str, list[Span]] = {}
    for span in sorted(spans, key=lambda each: each.start_ns):
        parent = span.parent_id if span.parent_id in known and span.parent_id != span.span_id else ""
        children.setdefault(parent, []).append(span)
    waiting = [(0, span) for span in reversed(children.get("", []))]
    while waiting:
        depth, span = waiting.pop()
        yield depth, span
        waiting += [(depth + 1, child) for child in reversed(children.get(span.span_id, []))]


def _bar(span: Span, *, first_ns: int, length_ns: int) -> Text:
    start = int((span.start_ns - first_ns) / length_ns * _BAR_CELLS)
    start = min(start, _BAR_CELLS - 1)
    cells = max(1, round((span.end_ns - span.start_ns) / length_ns * _BAR_CELLS))
    return Text(" " * start + "█" * min(cells, _BAR_CELLS - start), style="red" if span.failed else "cyan")


def _fail(text: str) -> NoReturn:
    print(f"twinmesh: {text}", file=sys.stderr)
    raise typer.Exit(1)
