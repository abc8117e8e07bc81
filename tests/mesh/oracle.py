"""What clients sent and what they were told, kept outside of what is made to fail; and what is stored."""

import asyncio
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from typing import NamedTuple

import asyncpg

Value = float | int | bool | str | tuple[float, float, float | None]
_SHOWN = 5


class Sample(NamedTuple):
    """One value; `time_us` is microseconds since the epoch, a point's altitude None when not known."""

    device_id: str
    metric: str
    time_us: int
    value: Value


@dataclass(slots=True, eq=False)
class Sent:
    """What is stored together or not at all.

    Attributes:
        samples: each unlike all others that are sent to the mesh.
        identity: writer and sequence, under which nothing else is stored; None: not known.
        acknowledged: the sender was told that it is durable.
    """

    samples: Sequence[Sample]
    identity: tuple[str, int] | None = None
    acknowledged: bool = False


class Oracle:
    """Says whether the store keeps what was promised."""

    def __init__(self) -> None:
        self._sent: list[Sent] = []
        self._progress = asyncio.Event()
        self._lanes = count()
        self.acknowledged = 0

    def lane(self) -> int:
        """Return a number that no other sender has, to choose times that nobody else has."""
        return next(self._lanes)

    def sends(self, samples: Sequence[Sample], identity: tuple[str, int] | None = None) -> Sent:
        """Note what is about to be sent."""
        sent = Sent(samples, identity)
        self._sent.append(sent)
        return sent

    def acknowledge(self, sent: Sent) -> None:
        """Note that it is durable, as the sender was told."""
        if not sent.acknowledged:
            sent.acknowledged = True
            self.acknowledged += 1
            self._progress.set()

    async def progress(self, batches: int) -> None:
        """Wait until so many more were acknowledged."""
        goal = self.acknowledged + batches
        while self.acknowledged < goal:
            self._progress.clear()
            await self._progress.wait()

    def devices(self) -> list[str]:
        """Return whom samples were sent for."""
        return sorted({sample.device_id for sent in self._sent for sample in sent.samples})

    async def judge(self, database_url: str) -> None:
        """Compare with what PostgreSQL holds of these devices.

        Raises:
            AssertionError: something is lost, doubled, torn or invented.
        """
        self.compare(await stored_samples(database_url, self.devices()))

    def compare(self, stored: Counter[Sample]) -> None:
        """Compare with what is stored.

        Raises:
            AssertionError: something is lost, doubled, torn or invented.
        """
        assert self._sent, "nothing was sent, so nothing is shown"
        doubled = [sample for sample, times in stored.items() if times > 1]
        assert not doubled, f"{len(doubled)} samples are stored twice: {doubled[:_SHOWN]}"
        kept = [sum(sample in stored for sample in sent.samples) for sent in self._sent]
        whole = [sent for sent, number in zip(self._sent, kept, strict=True) if number]
        torn = [sent for sent, number in zip(self._sent, kept, strict=True) if 0 < number < len(sent.samples)]
        assert not torn, f"{len(torn)} batches are stored in part: {_named(torn)}"
        lost = [
            sent for sent, number in zip(self._sent, kept, strict=True) if sent.acknowledged and not number
        ]
        assert not lost, f"{len(lost)} acknowledged batches are lost: {_named(lost)}"
        identities = Counter(sent.identity for sent in whole if sent.identity is not None)
        reused = [identity for identity, times in identities.items() if times > 1]
        assert not reused, f"{len(reused)} sequences are stored with two contents: {reused[:_SHOWN]}"
        invented = stored.keys() - {sample for sent in self._sent for sample in sent.samples}
        assert not invented, f"{len(invented)} samples were never sent: {sorted(invented, key=repr)[:_SHOWN]}"

    def latest(self) -> dict[tuple[str, str], int]:
        """Return the latest acknowledged time by device and metric, microseconds since the epoch."""
        found: dict[tuple[str, str], int] = {}
        for sent in self._sent:
            if sent.acknowledged:
                for sample in sent.samples:
                    key = sample.device_id, sample.metric
                    found[key] = max(found.get(key, sample.time_us), sample.time_us)
        return found

    def everything_acknowledged(self) -> bool:
        """Tell whether nothing is open any more."""
        return self.acknowledged == len(self._sent)


def _named(batches: Sequence[Sent]) -> str:
    return ", ".join(str(sent.identity or sent.samples[0]) for sent in batches[:_SHOWN])


async def stored_samples(database_url: str, devices: Sequence[str]) -> Counter[Sample]:
    """Return how often PostgreSQL holds each sample of these devices.

    Args:
        database_url: of somebody who may read everything.
        devices: their ids.
    """
    connection = await asyncpg.connect(database_url)
    try:
        rows = await connection.fetch(
            "SELECT series.device_id, series.metric, segment.times, "
            "segment.doubles, segment.ints, segment.bools, segment.points, "
            "(SELECT array_agg(strings[coalesce(codes[place], least(place, cardinality(strings)))] "
            "ORDER BY place) FROM generate_subscripts(times, 1) AS place WHERE strings IS NOT NULL) "
            "FROM telemetry.segment JOIN telemetry.series USING (tenant_id, series_id) "
            "WHERE series.device_id = ANY($1)",
            devices,
        )
    finally:
        await connection.close()
    found: Counter[Sample] = Counter()
    for device_id, metric, times, *columns in rows:
        (values,) = (column for column in columns if column is not None)
        if columns[3] is not None:
            values = _points(values)
        found.update(
            Sample(device_id, metric, time_us, value) for time_us, value in zip(times, values, strict=True)
        )
    return found


def _points(numbers: Sequence[float]) -> list[tuple[float, float, float | None]]:
    places = zip(numbers[::3], numbers[1::3], numbers[2::3], strict=True)
    return [
        (latitude, longitude, None if math.isnan(altitude) else altitude)
        for latitude, longitude, altitude in places
    ]
