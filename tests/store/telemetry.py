"""Telemetry written by the real writer, for tests of what reads it."""

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import numpy as np
from opentelemetry.trace import SpanContext

from meshkit import db
from meshkit.testing.database import TestDatabase
from telemetry_store.batch import Judge
from telemetry_store.catalog import SeriesCatalog
from telemetry_store.columns import Kind, KindColumns
from telemetry_store.requests import WriteRequest
from telemetry_store.series import Point, SeriesKey, Value
from telemetry_store.writer import TelemetryWriter

_KINDS = {float: Kind.DOUBLE, int: Kind.INT, bool: Kind.BOOL, str: Kind.STRING, Point: Kind.POINT}


@dataclass(frozen=True, slots=True)
class Sent:
    """One sample as a test states it."""

    device_id: str
    metric: str
    time_us: int
    value: Value

    @property
    def kind(self) -> Kind:
        return _KINDS[type(self.value)]


class Recorder:
    """Writes samples, one commit per call."""

    def __init__(self, *, catalog: SeriesCatalog, writer: TelemetryWriter) -> None:
        self._catalog = catalog
        self._writer = writer

    async def commit(
        self,
        tenant: str,
        samples: Sequence[Sent],
        *,
        unit: str = "unit",
        span: SpanContext | None = None,
        bulk: bool = False,
    ) -> None:
        """Commit samples, in the order given, by a request with this span."""
        keys = [SeriesKey(sample.device_id, sample.metric, sample.kind, unit) for sample in samples]
        ids = await self._catalog.resolve(tenant, keys)
        columns = []
        for kind in Kind:
            chosen = [place for place, sample in enumerate(samples) if sample.kind is kind]
            if chosen:
                columns.append(
                    KindColumns.of(
                        kind=kind,
                        series=ids[chosen],
                        times=np.array([samples[place].time_us for place in chosen], np.int64),
                        values=[samples[place].value for place in chosen],
                    )
                )
        await self._writer.write(
            WriteRequest(
                tenant=tenant,
                principal="user:tester",
                identity=None,
                digest=bytes(32),
                samples=columns,
                outcome=b"",
                refused_outcome=b"",
                span=span,
                bulk=bulk,
            )
        )


@asynccontextmanager
async def recorder(database: TestDatabase, *, judge: Judge | None = None) -> AsyncIterator[Recorder]:
    """An ingest process of its own: a new instance of the feed."""
    async with (
        db.pool(database.url("twinmesh_ingest"), application="recorder", max_size=4) as pool,
        SeriesCatalog(pool=pool) as catalog,
        TelemetryWriter(pool=pool, judge=judge) as writer,
    ):
        yield Recorder(catalog=catalog, writer=writer)
