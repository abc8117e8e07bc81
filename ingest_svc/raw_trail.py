"""The raw audit trail: messages of all doors as they were received, on their way to the writer.

Protobuf messages are serialized anew, which costs little and keeps fields that this server does not
know; a device's payload is kept byte for byte.
"""

import asyncio
import hashlib
import re
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest_svc.columns import SentColumns
from ingest_svc.outcome import RefusedContent
from ingest_svc.reading import Reading
from ingest_svc.series_table import SeriesTable
from telemetry_store.requests import DeviceSet, RawFormat, RawMessage
from twinmesh.ingest.v1 import ingest_service_pb2 as ingest_pb2
from twinmesh.type.v1 import value_pb2

_DEFINITIONS_PER_MESSAGE = 10_000  # as the contract allows
_DEFINED_AT_ONCE = 1_000
_SETS_PER_STREAM = 8
_DEVICE_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?")  # the contract's pattern

Places = npt.NDArray[np.bool_]


class RawTrail:
    """Makes raw messages for tenants that keep them.

    Args:
        keeps: says of a tenant whether it keeps raw messages now.
    """

    def __init__(self, *, keeps: Callable[[str], bool]) -> None:
        self.keeps = keeps

    def of_request(
        self,
        tenant: str,
        request: ingest_pb2.IngestTelemetryRequest,
        readings: Iterable[Reading],
        received_us: int,
    ) -> Sequence[RawMessage]:
        """Return what is kept of a unary request with these readings."""
        if not self.keeps(tenant):
            return ()
        devices = DeviceSet.of(reading.device_id for reading in readings)
        return (RawMessage(RawFormat.REQUEST, received_us, devices, request.SerializeToString()),)

    def of_events(
        self, tenant: str, request: ingest_pb2.IngestEventsRequest, received_us: int
    ) -> Sequence[RawMessage]:
        """Return what is kept of a unary request with events; one on an asset speaks of no device."""
        if not self.keeps(tenant):
            return ()
        devices = DeviceSet.of(event.device_id for event in request.events if event.device_id)
        return (RawMessage(RawFormat.EVENTS_REQUEST, received_us, devices, request.SerializeToString()),)

    def of_messages(
        self, tenant: str, messages: Iterable[tuple[bytes, Iterable[str]]], received_us: int
    ) -> Sequence[RawMessage]:
        """Return what is kept of devices' messages: one for each, in their order, or none at all.

        Args:
            tenant: whose.
            messages: payloads, each with the devices that it speaks of.
            received_us: when they were taken, microseconds since the epoch.
        """
        if not self.keeps(tenant):
            return ()
        return [
            RawMessage(RawFormat.MESSAGE, received_us, DeviceSet.of(devices), payload)
            for payload, devices in messages
        ]


@dataclass(frozen=True, slots=True)
class BatchTrail:
    """What is kept of a stream's batch.

    Attributes:
        messages: definitions that are not kept yet, and the batch.
        defined: bool[places], the aliases that these define; None: none.
    """

    messages: Sequence[RawMessage] = ()
    defined: Places | None = None


_NOTHING = BatchTrail()


class StreamTrail:
    """The trail of one stream: its batches, and once what their aliases stand for.

    Definitions are kept with a batch. As long as that one is not committed they are on their way;
    when it was not, they come with a later one.

    Args:
        trail: knows who keeps messages.
        tenant: whose stream.
        series: its definitions.
    """

    __slots__ = ("_aliases", "_devices", "_kept", "_kept_count", "_series", "_sets", "_tenant", "_trail")

    def __init__(self, *, trail: RawTrail, tenant: str, series: SeriesTable) -> None:
        self._trail = trail
        self._tenant = tenant
        self._series = series
        self._kept: Places = np.empty(0, np.bool_)  # by alias; those on their way count
        self._kept_count = 0
        # Gateways name the same series again and again.
        self._aliases = np.empty(0, np.uint32)
        self._devices: DeviceSet | None = None
        self._sets: OrderedDict[bytes, DeviceSet] = OrderedDict()

    async def of_batch(
        self,
        batch: ingest_pb2.Batch,
        content: SentColumns | Sequence[Reading] | RefusedContent | DeviceSet,
        received_us: int,
    ) -> BatchTrail:
        """Return what is kept of a batch.

        Args:
            batch: as it came; of columns that were read all aliases are defined.
            content: what was read of it; of messages the devices that they speak of.
            received_us: when it came, microseconds since the epoch.
        """
        if not self._trail.keeps(self._tenant):
            return _NOTHING
        devices = self._devices_of(batch, content)
        raw = RawMessage(RawFormat.BATCH, received_us, devices, batch.SerializeToString())
        if self._kept_count == self._series.defined:
            return BatchTrail((raw,))
        defined = self._series.kinds != 0
        defined[: len(self._kept)] &= ~self._kept
        messages = [message async for message in self._definitions(defined, received_us)]
        return BatchTrail((*messages, raw), defined)

    def sent(self, trail: BatchTrail) -> None:
        """Note that the writer has let a batch in with its trail."""
        if trail.defined is not None:
            kept = trail.defined.copy()
            kept[: len(self._kept)] |= self._kept
            self._set_kept(kept)

    def lost(self, trail: BatchTrail) -> None:
        """Note that the batch was not committed, or that it was known: its trail is not kept."""
        if trail.defined is not None:
            kept = self._kept.copy()
            kept[: len(trail.defined)] &= ~trail.defined
            self._set_kept(kept)

    def _set_kept(self, kept: Places) -> None:
        self._kept = kept
        self._kept_count = int(np.count_nonzero(kept))

    async def _definitions(self, defined: Places, received_us: int) -> AsyncIterator[RawMessage]:
        aliases: list[int] = np.flatnonzero(defined).tolist()
        for start in range(0, len(aliases), _DEFINITIONS_PER_MESSAGE):
            message = ingest_pb2.SeriesDefs()
            chosen = aliases[start : start + _DEFINITIONS_PER_MESSAGE]
            for first in range(0, len(chosen), _DEFINED_AT_ONCE):
                message.defs.extend(map(self._definition, chosen[first : first + _DEFINED_AT_ONCE]))
                await asyncio.sleep(0)  # The other streams have their turn.
            devices = DeviceSet.of(each.device_id for each in message.defs)
            yield RawMessage(RawFormat.SERIES_DEFS, received_us, devices, message.SerializeToString())

    def _definition(self, alias: int) -> ingest_pb2.SeriesDef:
        device_id, metric, kind, unit = self._series.definition(alias)
        return ingest_pb2.SeriesDef(
            alias=alias,
            device_id=device_id,
            metric=metric,
            kind=value_pb2.ValueKind.ValueType(kind),
            unit=unit,
        )

    def _devices_of(
        self,
        batch: ingest_pb2.Batch,
        content: SentColumns | Sequence[Reading] | RefusedContent | DeviceSet,
    ) -> DeviceSet:
        if isinstance(content, DeviceSet):
            return content
        if isinstance(content, SentColumns):
            behind = self._devices_behind(content.aliases)
            return (
                behind if not batch.events else DeviceSet.of([*behind.device_ids, *_devices_of_events(batch)])
            )
        if isinstance(content, RefusedContent):
            return DeviceSet.of(self._devices_named(batch))
        return DeviceSet.of([*(reading.device_id for reading in content), *_devices_of_events(batch)])

    def _devices_behind(self, aliases: npt.NDArray[np.uint32]) -> DeviceSet:
        if self._devices is not None and np.array_equal(self._aliases, aliases):
            return self._devices
        key = hashlib.blake2b(aliases.tobytes(), digest_size=16).digest()
        devices = self._sets.get(key)
        if devices is None:
            definition = self._series.definition
            devices = DeviceSet.of(definition(alias).device_id for alias in np.unique(aliases).tolist())
            self._sets[key] = devices
            if len(self._sets) > _SETS_PER_STREAM:
                self._sets.popitem(last=False)
        self._aliases, self._devices = aliases, devices
        return devices

    def _devices_named(self, batch: ingest_pb2.Batch) -> Iterator[str]:
        """Yield the devices of a batch that nobody has checked."""
        for alias in set(batch.columns.series):
            if alias < self._series.places and self._series.kinds[alias]:
                yield self._series.definition(alias).device_id
        named = [reading.device_id for reading in batch.readings]
        named += [message.device_id for message in batch.messages]
        for device_id in named:
            if _DEVICE_ID.fullmatch(device_id):
                yield device_id
        yield from _devices_of_events(batch)


def _devices_of_events(batch: ingest_pb2.Batch) -> Iterator[str]:
    """Yield the devices of a batch's events, which nobody has checked."""
    for event in batch.events:
        if _DEVICE_ID.fullmatch(event.device_id):
            yield event.device_id
