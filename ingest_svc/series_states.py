"""What is known of series: what judges their samples, and how they were last. Arrays by slot, no I/O."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ingest_svc.detectors import robust
from ingest_svc.detectors.robust import RobustDetector
from ingest_svc.device_states import DeviceStates
from ingest_svc.profile import QualityRules
from telemetry_store.saved_state import SavedState

MAX_SERIES = 1_000_000
# Stands for series that nobody has made known; nothing is remembered of it.
UNKNOWN = 0
_FIRST_SLOTS = 1_024
NEVER = np.iinfo(np.int64).min  # The time of no sample.

DETECTOR = "series"
ALONE = -1  # No group of devices.
_COLUMNS = (
    *("_met", "_changed", "rule_places", "last_times", "last_values"),
    *("begin_times", "before_times", "before_values"),
    *("joint_groups", "joint_slots", "joint_columns"),
)
_STATE = 2 + robust.STATE  # Numbers that are saved of a series.

Slots = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class KnownSeries:
    """A series that samples may come of.

    Attributes:
        series_id: its id.
        tenant: whose.
        device_id: of its device.
        metric: its metric.
        rules: what its samples are judged by.
        state: how it was when somebody saved it; None: nobody did.
        device_state: how its device was, when its metrics are looked at together; likewise.
    """

    series_id: int
    tenant: str
    device_id: str
    metric: str
    rules: QualityRules
    state: bytes | None = None
    device_state: bytes | None = None


class RuleColumns:
    """Rules in columns, one place for each that is different.

    Attributes:
        weights: float64[rules, 4].
        timely_us: int64[rules].
        minima: float64[rules].
        maxima: float64[rules].
        intervals_us: int64[rules], 0 for none.
        max_rates: float64[rules].
        anomaly_thresholds: float64[rules], infinite for none.
        anomaly_half_lives: float64[rules].
    """

    def __init__(self) -> None:
        self._places: dict[QualityRules, int] = {}
        self._rules: list[QualityRules] = []
        self.weights = np.empty((0, 4))
        self.place(QualityRules())  # Of UNKNOWN.
        self.complete()

    def place(self, rules: QualityRules) -> int:
        """Return the place of rules; `complete` has to be called before it is used."""
        place = self._places.get(rules)
        if place is None:
            place = self._places[rules] = len(self._rules)
            self._rules.append(rules)
        return place

    def complete(self) -> None:
        """Bring the columns up to date."""
        rules = self._rules
        if len(rules) == len(self.weights):
            return
        self.weights = np.array([each.weights for each in rules])
        self.timely_us = np.array([each.timely_us for each in rules], np.int64)
        self.minima = np.array([each.minimum for each in rules])
        self.maxima = np.array([each.maximum for each in rules])
        self.intervals_us = np.array([each.interval_us for each in rules], np.int64)
        self.max_rates = np.array([each.max_rate for each in rules])
        self.anomaly_thresholds = np.array([each.anomaly_threshold for each in rules])
        self.anomaly_half_lives = np.array([each.anomaly_half_life for each in rules])

    def __len__(self) -> int:
        """Return how many rules are different."""
        return len(self._rules)

    def __getitem__(self, place: int) -> QualityRules:
        """Return the rules at a place."""
        return self._rules[place]


class SeriesStates:
    """The series of a process.

    When there are more than `most`, those not met for longest are forgotten.

    Attributes:
        rules: what samples are judged by.
        rule_places: int32[slots], places in `rules`.
        last_times: int64[slots], of the latest sample, microseconds since the epoch; NEVER: there
            is none.
        last_values: float64[slots], its value; NaN for none and for what is no number.
        begin_times: int64[slots], where the samples began that were remembered last: they may be judged
            again, when their group is prepared anew; NEVER for none.
        before_times: int64[slots], `last_times` before them.
        before_values: float64[slots], likewise.
        detector: of unusual values.
        devices: those whose metrics are looked at together.
        joint_groups: int16[slots], the series' device's group in `devices`, ALONE for none.
        joint_slots: int32[slots], its slot there.
        joint_columns: int16[slots], which of its metrics the series is.
    """

    def __init__(self, *, most: int = MAX_SERIES) -> None:
        self._most = most
        self._slots: dict[int, int] = {}
        self._series: list[tuple[str, int]] = [("", 0)]
        self._met = np.zeros(_FIRST_SLOTS, np.int64)
        self._changed = np.zeros(_FIRST_SLOTS, np.bool_)
        self._round = 0
        self._saved_to = 0
        self.rules = RuleColumns()
        self.rule_places = np.zeros(_FIRST_SLOTS, np.int32)
        self.last_times = np.full(_FIRST_SLOTS, NEVER, np.int64)
        self.last_values = np.full(_FIRST_SLOTS, np.nan)
        self.begin_times = np.full(_FIRST_SLOTS, NEVER, np.int64)
        self.before_times = np.full(_FIRST_SLOTS, NEVER, np.int64)
        self.before_values = np.full(_FIRST_SLOTS, np.nan)
        self.detector = RobustDetector(_FIRST_SLOTS)
        self.devices = DeviceStates()
        self.joint_groups = np.full(_FIRST_SLOTS, ALONE, np.int16)
        self.joint_slots = np.zeros(_FIRST_SLOTS, np.int32)
        self.joint_columns = np.zeros(_FIRST_SLOTS, np.int16)

    def __len__(self) -> int:
        """Return how many series are known."""
        return len(self._slots)

    def rules_of(self, series_id: int) -> QualityRules | None:
        """Return what a series' samples are judged by, None when it is not known."""
        slot = self._slots.get(series_id)
        return None if slot is None else self.rules[int(self.rule_places[slot])]

    def know(self, known: Iterable[KnownSeries]) -> None:
        """Take series in, or new rules for those that are; their state is then not looked at."""
        places: dict[int, int] = {}
        new: dict[int, bytes | None] = {}
        for series in known:
            slot = self._slots.get(series.series_id)
            if slot is None:
                if len(self._slots) >= self._most:
                    self._take_in(places, new)
                    self._forget()
                slot = self._add(series)
                new[slot] = series.state
            places[slot] = self.rules.place(series.rules)
            self._join(slot, series)
        self._take_in(places, new)

    def meet(self, series_ids: npt.NDArray[np.int32]) -> Slots:
        """Return the slots of series that samples have come of, UNKNOWN for those that are not known."""
        self._round += 1
        find = self._slots.get
        slots = np.array([find(series_id, UNKNOWN) for series_id in series_ids.tolist()], np.intp)
        self._met[slots] = self._round
        return slots

    def before(
        self, slots: Slots, times: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
        """Return time and value of the sample that was remembered before each, NEVER and NaN for none.

        Args:
            slots: intp[n].
            times: int64[n], microseconds since the epoch.
        """
        again = times == self.begin_times[slots]
        remembered = np.where(again, self.before_times[slots], self.last_times[slots])
        values = np.where(again, self.before_values[slots], self.last_values[slots])
        earlier = remembered < times
        return np.where(earlier, remembered, NEVER), np.where(earlier, values, np.nan)

    def remember(
        self,
        slots: Slots,
        begin_times: npt.NDArray[np.int64],
        times: npt.NDArray[np.int64],
        values: npt.NDArray[np.float64] | None,
    ) -> None:
        """Note the latest samples of series, each slot once; what is no later than the last is left out.

        Args:
            slots: intp[n].
            begin_times: int64[n], of the first sample beside each, microseconds since the epoch.
            times: int64[n], likewise.
            values: float64[n], None when they are no numbers.
        """
        newer = (times > self.last_times[slots]) & (slots != UNKNOWN)
        slots = slots[newer]
        self.begin_times[slots] = begin_times[newer]
        self.before_times[slots] = self.last_times[slots]
        self.before_values[slots] = self.last_values[slots]
        self.last_times[slots] = times[newer]
        if values is not None:
            self.last_values[slots] = values[newer]
        self._changed[slots] = True

    def take_changed(self, most: int) -> list[SavedState]:
        """Return the states of series that changed since they were returned last, at most so many.

        All have their turn, however often some change.
        """
        changed = np.flatnonzero(self._changed)
        slots = np.roll(changed, -int(np.searchsorted(changed, self._saved_to)))[:most]
        self._saved_to = int(slots[-1]) + 1 if len(slots) else 0
        self._changed[slots] = False
        states = np.column_stack([self.last_times[slots], self.last_values[slots], self.detector.rows(slots)])
        return [
            SavedState(tenant, DETECTOR, str(series_id), int(state[0]), state.astype("<f8").tobytes())
            for (tenant, series_id), state in zip(
                map(self._series.__getitem__, slots.tolist()), states, strict=True
            )
        ]

    def _join(self, slot: int, series: KnownSeries) -> None:
        rules = series.rules.joint
        place = None
        if rules is not None:
            place = self.devices.place((series.tenant, series.device_id), rules, series.device_state)
            self.joint_columns[slot] = rules.metrics.index(series.metric)
        self.joint_groups[slot], self.joint_slots[slot] = place or (ALONE, 0)

    def _add(self, series: KnownSeries) -> int:
        slot = len(self._series)
        if slot == len(self._met):
            self._grow(2 * slot)
        self._slots[series.series_id] = slot
        self._series.append((series.tenant, series.series_id))
        return slot

    def _take_in(self, places: dict[int, int], new: dict[int, bytes | None]) -> None:
        """Enter rules and states of slots, and leave nothing of either."""
        self.rules.complete()
        slots = list(new)
        self._met[slots] = self._round
        self._changed[slots] = False
        states = np.array([_whole(state) for state in new.values()]).reshape(len(slots), _STATE)
        times = states[:, 0]
        self.last_times[slots] = np.where(np.isnan(times), NEVER, np.nan_to_num(times).astype(np.int64))
        self.last_values[slots] = states[:, 1]
        self.begin_times[slots] = NEVER
        self.detector.load(slots, np.nan_to_num(states[:, 2:]))
        slots = list(places)
        self.rule_places[slots] = list(places.values())
        self._configure(np.array(slots, np.intp))
        places.clear()
        new.clear()

    def _configure(self, slots: Slots) -> None:
        rules = self.rule_places[slots]
        self.detector.configure(
            slots,
            thresholds=self.rules.anomaly_thresholds[rules],
            half_lives=self.rules.anomaly_half_lives[rules],
        )

    def _grow(self, slots: int) -> None:
        for name in _COLUMNS:
            column = getattr(self, name)
            grown = np.zeros(slots, column.dtype)
            grown[: len(column)] = column
            setattr(self, name, grown)
        self.detector.reserve(slots)

    def _forget(self) -> None:
        """Forget the half of the series that were not met for longest, and move the others together."""
        used = len(self._series)
        oldest = np.argsort(self._met[1:used], kind="stable") + 1
        kept = np.sort(oldest[len(oldest) // 2 :])
        for name in _COLUMNS:
            column = getattr(self, name)
            column[1 : len(kept) + 1] = column[kept]
        self._changed[len(kept) + 1 :] = False
        self.detector.load(range(1, len(kept) + 1), self.detector.rows(kept))
        self._configure(np.arange(1, len(kept) + 1))
        self._series = [self._series[0], *(self._series[slot] for slot in kept.tolist())]
        self._slots = {series_id: slot for slot, (_, series_id) in enumerate(self._series) if slot}


def _whole(state: bytes | None) -> npt.NDArray[np.float64]:
    """Return a state that can be taken over: one of this form, or that of a series never met."""
    if state is not None and len(state) == _STATE * np.float64().nbytes:
        numbers = np.frombuffer(state, "<f8").astype(np.float64)
        # Of the detector's, scale and count are not negative.
        if np.isfinite(numbers[[0, *range(2, _STATE)]]).all() and (numbers[3:5] >= 0).all():
            return numbers
    return np.full(_STATE, np.nan)
