"""The rules of a watch: which twins a selection holds, and what of them is to be told next.

A watch keeps no queue. It remembers up to which version of the fleet it has told; asked
again, it tells the present state of what changed since.
"""

import hashlib
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from meshkit.clock import Clock
from meshkit.scope import Scope
from telemetry_store.commit_numbers import Coverage
from twin_svc.fleet import Fleet, Slots
from twin_svc.tokens import ResumePoint
from twin_svc.twins import Device, Twin

_TWINS_PER_EVENT = 500
# Of more it is quicker to sort them all.
_FEW = 100
_NONE = np.empty(0, dtype=np.int32)
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Area:
    """Degrees north and east, edges included; where west is greater than east it crosses the antimeridian."""

    south: float
    west: float
    north: float
    east: float

    def holds(self, positions: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        """Return which of the positions, (latitude, longitude) of shape (n, 2), lie inside; NaN does not."""
        latitude, longitude = positions[:, 0], positions[:, 1]
        east_of, west_of = longitude >= self.west, longitude <= self.east
        between = east_of & west_of if self.west <= self.east else east_of | west_of
        inside: npt.NDArray[np.bool_] = (latitude >= self.south) & (latitude <= self.north) & between
        return inside & ~np.isnan(longitude)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which twins a watch holds, and which of their metrics; what is empty selects all.

    `scope` are the devices that the caller is bound to.
    """

    ids: frozenset[str] = frozenset()
    device_type_id: str = ""
    tag: str = ""
    area: Area | None = None
    metrics: frozenset[str] = frozenset()
    scope: Scope | None = None

    def fits(self, device: Device) -> bool:
        """Say whether a device fits, wherever it is."""
        return (
            (not self.ids or device.id in self.ids)
            and self.device_type_id in ("", device.device_type_id)
            and (not self.tag or self.tag in device.tags)
            and (self.scope is None or self.scope.holds(device.id, device.parent_id))
        )


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Some of the twins as they are now."""

    twins: Sequence[Twin]


@dataclass(frozen=True, slots=True)
class SnapshotEnd:
    """All twins were named; go on here."""

    point: ResumePoint


@dataclass(frozen=True, slots=True)
class Change:
    """Twins with what changed of them."""

    twins: Sequence[Twin]


@dataclass(frozen=True, slots=True)
class Bookmark:
    """Everything before was told."""

    point: ResumePoint


@dataclass(frozen=True, slots=True)
class Gap:
    """States in between were not told."""


@dataclass(frozen=True, slots=True)
class Enter:
    """Twins that fit the selection now."""

    twins: Sequence[Twin]


@dataclass(frozen=True, slots=True)
class Leave:
    """Ids of those that fit it no more."""

    ids: Sequence[str]


Event = Snapshot | SnapshotEnd | Change | Bookmark | Gap | Enter | Leave


class Devices(Protocol):
    """A tenant's devices."""

    @property
    def version(self) -> int:
        """Return a number that rises whenever a device changes."""
        ...

    @property
    def all(self) -> Mapping[str, Device]:
        """Return them by id."""
        ...

    def changed(self, *, after: int) -> Collection[str] | None:
        """Return the ids of those that changed after a version, None when nobody knows any more."""
        ...


@dataclass(frozen=True, slots=True)
class _Fitting:
    device: Device
    slot: int


@dataclass(slots=True)
class _Members:
    """Twins that a watch holds, in columns, by id.

    Attributes:
        ids: of the devices.
        devices: their slots.
        heartbeats: of their types, microseconds; 0: none.
        online: whether they were told to be.
    """

    ids: list[str] = field(default_factory=list)
    devices: Slots = field(default_factory=lambda: _NONE)
    heartbeats: npt.NDArray[np.int64] = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    online: npt.NDArray[np.bool_] = field(default_factory=lambda: np.empty(0, dtype=np.bool_))

    def places(self, ids: Collection[str]) -> set[int]:
        """Return the places of those of some devices that are members."""
        places = ((bisect_left(self.ids, id_), id_) for id_ in ids)
        return {place for place, id_ in places if place < len(self.ids) and self.ids[place] == id_}


class Watch:
    """Tells one caller of the twins of a selection.

    Args:
        tenant: whose twins.
        selection: which of them.
        fleet: their values.
        devices: the tenant's.
        clock: tells who is online.
    """

    def __init__(
        self, *, tenant: str, selection: Selection, fleet: Fleet, devices: Devices, clock: Clock
    ) -> None:
        self._tenant = tenant
        self._selection = selection
        self._fleet = fleet
        self._devices = devices
        self._clock = clock
        self._fitting: dict[str, _Fitting] = {}  # wherever they are
        self._sorted: tuple[list[str], Slots] = ([], _NONE)  # their ids and slots
        self._devices_version = -1
        self._members = _Members()
        self._slots = _NONE  # of the members' metrics
        self._owners = np.empty(0, dtype=np.intp)  # each one's member, by its place
        self._layout = -1
        self._told = 0
        self._digest = _digest(*sorted(selection.metrics))

    @property
    def members(self) -> int:
        """Return a digest of the twins that are held, and of the metrics that are asked for."""
        return self._digest

    @property
    def devices(self) -> Slots:
        """Return the slots of all devices whose changes concern this watch; a new array when they change."""
        return self._sorted[1]

    def begin(self, resumed: ResumePoint | None, checkpoint: Coverage) -> Iterator[Event]:
        """Yield the snapshot.

        Args:
            resumed: how far the caller was told already.
            checkpoint: where values whose commit is not known come from.
        """
        self._follow_devices()
        self._follow_members()
        self._follow_layout()
        self._told = self._fleet.version
        told = np.zeros(len(self._slots), dtype=np.bool_)
        # Of a twin that has entered since, nothing was told, however old its values are.
        if resumed is not None and resumed.members == self._digest:
            instances, commits = self._fleet.commits(self._slots)
            told = resumed.coverage.told(instances, commits)
            if resumed.coverage.covers(checkpoint):
                told |= instances == 0
        slots = self._by_member(~told)
        for places in _parts(range(len(self._members.ids))):
            yield Snapshot([self._twin(self._members.ids[place], slots.get(place, ())) for place in places])

    def look(self) -> Iterator[Event]:
        """Yield what changed since the last look; each look is to be taken to its end."""
        renewed = self._follow_devices()
        left, entered = self._follow_members()
        touched = self._members.places(renewed)
        self._follow_heartbeats(touched)
        self._follow_layout()
        after, self._told = self._told, self._fleet.version
        slots = self._by_member(self._fleet.changed(self._slots, after=after))
        concerned = self._turned().union(slots, touched)
        concerned -= self._members.places(entered)
        yield from (Leave(part) for part in _parts(left))
        for ids in _parts(entered):
            yield Enter([self._twin(id_) for id_ in ids])
        for places in _parts(sorted(concerned)):
            yield Change([self._twin(self._members.ids[place], slots.get(place, ())) for place in places])

    def _follow_members(self) -> tuple[Sequence[str], Sequence[str]]:
        """Decide anew who is a member; returns the ids of those that left and of those that entered."""
        before = self._members
        fitting, slots = self._sorted
        inside = None
        if self._selection.area is not None:
            inside = np.flatnonzero(self._selection.area.holds(self._fleet.positions(slots)))
            slots = slots[inside]
        if slots is before.devices or np.array_equal(slots, before.devices):
            return (), ()
        ids = fitting if inside is None else [fitting[place] for place in inside.tolist()]
        stay, new = np.isin(before.devices, slots), ~np.isin(slots, before.devices)
        left = [before.ids[place] for place in np.flatnonzero(~stay).tolist()]
        entered = [ids[place] for place in np.flatnonzero(new).tolist()]
        for id_ in (*left, *entered):
            self._digest ^= _digest(id_)
        # Both are in the order of ids, so who stays keeps its order. It is told of when it turns from what it
        # was told to be.
        heartbeats = np.zeros(len(slots), dtype=np.int64)
        heartbeats[~new] = before.heartbeats[stay]
        heartbeats[new] = [self._fitting[id_].device.heartbeat_us for id_ in entered]
        self._members = _Members(ids, slots, heartbeats)
        self._members.online = self._online()
        self._members.online[~new] = before.online[stay]
        places = np.full(len(before.devices), -1, dtype=np.intp)
        places[stay] = np.flatnonzero(~new)
        self._owners = places[self._owners]
        self._place_metrics(self._owners >= 0, np.flatnonzero(new))
        return left, entered

    def _follow_heartbeats(self, places: Collection[int]) -> None:
        for place in places:
            device = self._fitting[self._members.ids[place]].device
            self._members.heartbeats[place] = device.heartbeat_us

    def _turned(self) -> set[int]:
        """Return the places of members that are online and were told to be offline, or the reverse."""
        members = self._members
        if not members.heartbeats.any():
            return set()
        online = self._online()
        turned = np.flatnonzero(online != members.online)
        members.online = online
        return set(turned.tolist())

    def _twin(self, device_id: str, slots: Sequence[int] | None = None) -> Twin:
        fitting = self._fitting[device_id]
        if slots is None:
            slots = self._fleet.metric_slots([fitting.slot], self._selection.metrics).tolist()
        return self._fleet.shared_twin(self._tenant, fitting.device, slots=tuple(slots))

    def _by_member(self, chosen: npt.NDArray[np.bool_]) -> Mapping[int, Sequence[int]]:
        """Return the chosen ones of the metrics by the place of their member."""
        found: defaultdict[int, list[int]] = defaultdict(list)
        for place, slot in zip(self._owners[chosen].tolist(), self._slots[chosen].tolist(), strict=True):
            found[place].append(slot)
        return found

    def _follow_devices(self) -> Collection[str]:
        """Take over changes of devices; returns the ids of those that changed and fit."""
        version = self._devices.version
        if version == self._devices_version:
            return ()
        changed = self._devices.changed(after=self._devices_version)
        everything = self._devices.all
        if changed is None:
            changed = everything.keys() | self._fitting.keys()
            if self._selection.ids:
                changed = changed & self._selection.ids
        self._devices_version = version
        fit, came, went = set(), [], []
        for id_ in changed:
            device = everything.get(id_)
            if device is not None and self._selection.fits(device):
                if id_ not in self._fitting:
                    came.append(id_)
                self._fitting[id_] = _Fitting(device, self._fleet.device_slot(self._tenant, id_))
                fit.add(id_)
            elif self._fitting.pop(id_, None) is not None:
                went.append(id_)
        if came or went:
            self._sort(came, went)
        return fit

    def _sort(self, came: Sequence[str], went: Sequence[str]) -> None:
        """Take over who fits now; of a few it costs no walk over all."""
        ids, slots = self._sorted
        if len(came) + len(went) > _FEW:
            ids = sorted(self._fitting)
            self._sorted = ids, np.array([self._fitting[id_].slot for id_ in ids], dtype=np.int32)
            return
        ids = ids.copy()
        for id_ in went:
            place = bisect_left(ids, id_)
            del ids[place]
            slots = np.delete(slots, place)
        for id_ in came:
            place = bisect_left(ids, id_)
            ids.insert(place, id_)
            slots = np.insert(slots, place, self._fitting[id_].slot)
        self._sorted = ids, slots

    def _follow_layout(self) -> None:
        """Look for metrics that members have reported for the first time."""
        if self._layout == self._fleet.layout:
            return
        new = self._fleet.have_new_metrics(self._members.devices, after=self._layout)
        self._layout = self._fleet.layout
        if new.any():
            self._place_metrics(~new[self._owners], np.flatnonzero(new))

    def _place_metrics(self, kept: npt.NDArray[np.bool_], places: npt.NDArray[np.intp]) -> None:
        """Keep some of the metrics, and take those of the members at some places anew."""
        devices = self._members.devices[places]
        slots = self._fleet.metric_slots(devices.tolist(), self._selection.metrics)
        order = np.argsort(devices)
        owners = places[order[np.searchsorted(devices, self._fleet.devices_of(slots), sorter=order)]]
        self._slots = np.concatenate((self._slots[kept], slots))
        self._owners = np.concatenate((self._owners[kept], owners))

    def _online(self) -> npt.NDArray[np.bool_]:
        heartbeats = self._members.heartbeats
        since = self._clock.now_us() - heartbeats
        online: npt.NDArray[np.bool_] = (heartbeats > 0) & (
            self._fleet.last_seen(self._members.devices) >= since
        )
        return online


def _digest(*names: str) -> int:
    """Return 63 bits that stand for names; of a set they are combined by exclusive or."""
    return int.from_bytes(hashlib.blake2b("\0".join(names).encode(), digest_size=8).digest()) >> 1


def _parts(whole: Sequence[_T]) -> Iterator[Sequence[_T]]:
    for start in range(0, len(whole), _TWINS_PER_EVENT):
        yield whole[start : start + _TWINS_PER_EVENT]
