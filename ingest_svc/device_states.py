"""Devices whose metrics are looked at together: how they were so far. Arrays by slot, no I/O."""

import hashlib
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import structlog

from ingest_svc.detectors.multivariate import BLOCKS, MultivariateDetector, Settings
from ingest_svc.profile import JointRules
from telemetry_store.saved_state import SavedState

DETECTOR = "device"
_log = structlog.get_logger()
# Of all devices with equally many metrics and an equally long warm-up.
_MOST_BYTES = 64 * 1024 * 1024
_FLOAT_BYTES = 8
_FIRST_SLOTS = 64
_DIGEST_BYTES = 8

DeviceKey = tuple[str, str]  # tenant, device id


@dataclass(slots=True)
class _Group:
    """Devices that one detector judges."""

    detector: MultivariateDetector
    most: int
    slots: dict[tuple[DeviceKey, JointRules], int] = field(default_factory=dict)
    devices: list[tuple[DeviceKey, JointRules]] = field(default_factory=list)
    is_full: bool = False


class DeviceStates:
    """The devices of a process whose metrics are looked at together.

    There is room for so many bytes of devices of one form; those that come later are not looked at.
    """

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._places: dict[tuple[int, int], int] = {}
        # Group and slot by device, those that wait for longest first. When its rules change a device
        # gets another slot; only the one that changed last counts, since it has one state in the store.
        self._changed: dict[DeviceKey, tuple[int, int]] = {}

    def knows(self, device: DeviceKey, rules: JointRules) -> bool:
        """Say whether a device has a slot."""
        place = self._places.get((len(rules.metrics), rules.warm_up))
        return place is not None and (device, rules) in self._groups[place].slots

    def place(self, device: DeviceKey, rules: JointRules, state: bytes | None) -> tuple[int, int] | None:
        """Return the group and slot of a device, None when there is no room for it.

        Args:
            device: which.
            rules: which of its metrics are looked at.
            state: how it was when somebody saved it; None: nobody did. Not looked at when the device is
                known already.
        """
        form = (len(rules.metrics), rules.warm_up)
        number = self._places.get(form)
        if number is None:
            number = self._places[form] = len(self._groups)
            self._groups.append(_new_group(rules))
        group = self._groups[number]
        slot = group.slots.get((device, rules))
        if slot is None:
            slot = len(group.devices)
            if slot >= group.most:
                _warn_once(group, device)
                return None
            if slot >= group.detector.capacity:
                group.detector.reserve(min(max(2 * slot, _FIRST_SLOTS), group.most))
            group.slots[device, rules] = slot
            group.devices.append((device, rules))
            _restore(group.detector, slot, rules, state)
        return number, slot

    def judge(
        self,
        group: int,
        slots: npt.NDArray[np.int32],
        columns: npt.NDArray[np.int16],
        times: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64],
    ) -> npt.NDArray[np.bool_]:
        """Say which samples are of a time at which their device's metrics did not fit each other.

        Args:
            group: of all devices.
            slots: int32[n], of each sample's device.
            columns: int16[n], which of the device's metrics it is of.
            times: int64[n], microseconds since the epoch.
            values: float64[n].
        """
        detector, devices = self._groups[group].detector, self._groups[group].devices
        order = np.lexsort((times, slots))
        slots, times = slots[order], times[order]
        begins = np.append(True, (slots[1:] != slots[:-1]) | (times[1:] != times[:-1]))
        rows = np.cumsum(begins) - 1
        table = np.full((int(rows[-1]) + 1, detector.metrics), np.nan)
        table[rows, columns[order]] = values[order]
        firsts = np.flatnonzero(begins)
        row_slots = slots[firsts]
        starts = np.flatnonzero(np.append(True, row_slots[1:] != row_slots[:-1]))
        lengths = np.diff(starts, append=len(firsts))
        found = detector.score(row_slots[starts], starts, lengths, times[firsts], table)
        for slot in row_slots[starts].tolist():
            self._changed[devices[slot][0]] = (group, slot)
        anomalous = np.empty(len(order), np.bool_)
        anomalous[order] = found.anomalous[rows]
        return anomalous

    def take_changed(self, most_bytes: int) -> list[SavedState]:
        """Return the states of devices that changed since they were returned last, as far as they fit.

        Each is there once, and all have their turn, however often some change.
        """
        chosen: dict[int, list[int]] = {}
        for device, (group, slot) in list(self._changed.items()):
            most_bytes -= self._groups[group].detector.state_size * _FLOAT_BYTES
            if most_bytes < 0:
                break
            del self._changed[device]
            chosen.setdefault(group, []).append(slot)
        saved: list[SavedState] = []
        for group, slots in chosen.items():
            detector, devices = self._groups[group].detector, self._groups[group].devices
            for slot, row in zip(slots, detector.rows(slots), strict=True):
                (tenant, device_id), rules = devices[slot]
                state = _digest(rules) + row.astype("<f8").tobytes()
                saved.append(SavedState(tenant, DETECTOR, device_id, int(row[1]), state))
        return saved


def _new_group(rules: JointRules) -> _Group:
    warm_up = -(-rules.warm_up // BLOCKS) * BLOCKS
    detector = MultivariateDetector(len(rules.metrics), settings=Settings(warm_up=warm_up))
    # What follows from the state takes about as much again.
    return _Group(detector, most=_MOST_BYTES // (2 * detector.state_size * _FLOAT_BYTES))


def _restore(detector: MultivariateDetector, slot: int, rules: JointRules, state: bytes | None) -> None:
    """Take over a state, unless it is of other metrics or of another form."""
    size = _DIGEST_BYTES + detector.state_size * _FLOAT_BYTES
    if state is None or len(state) != size or state[:_DIGEST_BYTES] != _digest(rules):
        return
    row = np.frombuffer(state[_DIGEST_BYTES:], "<f8").astype(np.float64)
    if detector.is_state(row):
        detector.load([slot], row[np.newaxis])


def _digest(rules: JointRules) -> bytes:
    # A state is cut into blocks by its warm-up.
    form = f"{rules.warm_up}:{','.join(rules.metrics)}"
    return hashlib.blake2b(form.encode(), digest_size=_DIGEST_BYTES).digest()


def _warn_once(group: _Group, device: DeviceKey) -> None:
    if not group.is_full:
        group.is_full = True
        _log.warning("no more devices are looked at together", devices=group.most, first_left_out=device)
