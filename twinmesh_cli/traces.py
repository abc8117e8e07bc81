"""Recent spans in a small SQLite file: written by the OTLP receiver, read by `twinmesh trace`.

Times are nanoseconds since the epoch; ids are lower-case hexadecimal text.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from twinmesh_cli import sqlite_file

_KEPT_SPANS = 200_000
# A commit may carry batches of thousands of traces; nobody reads more than a few of them.
_LINKED_TRACES = 20

_SCHEMA = """
CREATE TABLE IF NOT EXISTS span (
    number INTEGER PRIMARY KEY,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    parent_id TEXT NOT NULL,
    service TEXT NOT NULL,
    name TEXT NOT NULL,
    start_ns INTEGER NOT NULL,
    end_ns INTEGER NOT NULL,
    failed INTEGER NOT NULL,
    attributes TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS span_by_trace ON span (trace_id);
CREATE TABLE IF NOT EXISTS span_link (
    number INTEGER NOT NULL,
    trace_id TEXT NOT NULL,
    span_id TEXT NOT NULL,
    linked_trace_id TEXT NOT NULL,
    linked_span_id TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS link_by_trace ON span_link (trace_id);
CREATE INDEX IF NOT EXISTS link_by_linked_trace ON span_link (linked_trace_id);
CREATE INDEX IF NOT EXISTS link_by_number ON span_link (number);
"""


@dataclass(frozen=True)
class Link:
    """From a span to a span of another trace."""

    trace_id: str
    span_id: str


@dataclass(frozen=True)
class Span:
    """One finished span. `parent_id` is "" at the root."""

    trace_id: str
    span_id: str
    parent_id: str
    service: str
    name: str
    start_ns: int
    end_ns: int
    failed: bool
    attributes: dict[str, object]
    links: tuple[Link, ...] = ()


@dataclass(frozen=True)
class TraceView:
    """A trace, and those tied to it by links.

    `linked` holds traces that link to it or that it links to; `more_linked` counts
    further ones that were left out.
    """

    trace_id: str
    spans: tuple[Span, ...]
    linked: tuple[tuple[Span, ...], ...]
    more_linked: int


class TraceStore:
    """The file, opened by one writer or by any number of readers."""

    def __init__(self, connection: sqlite3.Connection, *, kept_spans: int = _KEPT_SPANS) -> None:
        self._connection = connection
        self._kept_spans = kept_spans

    @classmethod
    @contextmanager
    def writing(cls, path: Path, *, kept_spans: int = _KEPT_SPANS) -> Iterator["TraceStore"]:
        """Opens the file to write, making it if absent; spans of a file that is damaged are lost."""
        with sqlite_file.writing(path, _SCHEMA) as connection:
            yield cls(connection, kept_spans=kept_spans)

    @classmethod
    @contextmanager
    def reading(cls, path: Path) -> Iterator["TraceStore"]:
        """Opens the file to read.

        Raises:
            FileNotFoundError: there is none.
        """
        with sqlite_file.reading(path) as connection:
            yield cls(connection)

    def add(self, spans: Iterable[Span]) -> None:
        """Appends spans and forgets the oldest beyond the limit."""
        with self._connection as transaction:
            for span in spans:
                row = transaction.execute(
                    "INSERT INTO span (trace_id, span_id, parent_id, service, name, start_ns, end_ns, failed,"
                    " attributes) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                    (
                        span.trace_id,
                        span.span_id,
                        span.parent_id,
                        span.service,
                        span.name,
                        span.start_ns,
                        span.end_ns,
                        span.failed,
                        json.dumps(span.attributes),
                    ),
                )
                transaction.executemany(
                    "INSERT INTO span_link (number, trace_id, span_id, linked_trace_id, linked_span_id)"
                    " VALUES (?, ?, ?, ?, ?)",
                    [
                        (row.lastrowid, span.trace_id, span.span_id, to.trace_id, to.span_id)
                        for to in span.links
                    ],
                )
            newest = transaction.execute("SELECT max(number) FROM span").fetchone()[0] or 0
            oldest = newest - self._kept_spans
            transaction.execute("DELETE FROM span WHERE number <= ?", (oldest,))
            transaction.execute("DELETE FROM span_link WHERE number <= ?", (oldest,))

    def view(self, trace_id: str) -> TraceView | None:
        """The trace and its neighbours by links in both directions; None when no span of it is known."""
        spans = self._spans(trace_id)
        if not spans:
            return None
        rows = self._connection.execute(
            "SELECT linked_trace_id FROM span_link WHERE trace_id = ?1"
            " UNION SELECT trace_id FROM span_link WHERE linked_trace_id = ?1",
            (trace_id,),
        )
        neighbours = sorted(row[0] for row in rows if row[0] != trace_id)
        linked = [self._spans(each) for each in neighbours[:_LINKED_TRACES]]
        return TraceView(
            trace_id=trace_id,
            spans=spans,
            linked=tuple(each for each in linked if each),
            more_linked=max(0, len(neighbours) - _LINKED_TRACES),
        )

    def matching(self, prefix: str) -> list[str]:
        """The trace ids that begin so, ten at most."""
        rows = self._connection.execute(
            "SELECT DISTINCT trace_id FROM span WHERE trace_id >= ?1 AND trace_id < ?1 || 'g' LIMIT 10",
            (prefix,),
        )
        return [row[0] for row in rows]

    def _spans(self, trace_id: str) -> tuple[Span, ...]:
        links: dict[str, list[Link]] = {}
        for span_id, linked_trace, linked_span in self._connection.execute(
            "SELECT span_id, linked_trace_id, linked_span_id FROM span_link WHERE trace_id = ?", (trace_id,)
        ):
            links.setdefault(span_id, []).append(Link(linked_trace, linked_span))
        rows: Sequence[tuple[str, str, str, str, int, int, int, str]] = self._connection.execute(
            "SELECT span_id, parent_id, service, name, start_ns, end_ns, failed, attributes FROM span"
            " WHERE trace_id = ? ORDER BY start_ns, number",
            (trace_id,),
        ).fetchall()
        return tuple(
            Span(
                trace_id=trace_id,
                span_id=span_id,
                parent_id=parent_id,
                service=service,
                name=name,
                start_ns=start_ns,
                end_ns=end_ns,
                failed=bool(failed),
                attributes=json.loads(attributes),
                links=tuple(links.get(span_id, ())),
            )
            for span_id, parent_id, service, name, start_ns, end_ns, failed, attributes in rows
        )
