"""The series of one stream: what its aliases stand for, and what may be stored under them."""

import hashlib
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ingest_svc import outcome
from ingest_svc.outcome import Why
from ingest_svc.profile import DeviceProfile, MetricProfile
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import InvalidArgument
from meshkit.units import Conversion, UnitError, conversion
from telemetry_store.columns import Kind
from telemetry_store.series import SeriesKey
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

MAX_SERIES = 100_000
# So often everything is decided anew, whether or not a change was announced …
_FRESH_US = 30 * MICROS_PER_SECOND
# … and no oftener than this however many changes are: an import makes thousands.
_CHANGED_US = MICROS_PER_SECOND // 2
_FIRST_PLACES = 4

_NO_IDS = np.empty(0, np.uint64)
_NO_KINDS = np.empty(0, np.int8)
_NO_SERIES = np.empty(0, np.int32)
_NO_VERDICTS = np.empty(0, np.int16)
_AS_SENT = np.array([1.0, 0.0])
_UNBOUNDED = np.array([-np.inf, np.inf])


class SeriesDefinition(NamedTuple):
    """What a client says an alias stands for; `unit` is "" for the metric's own."""

    device_id: str
    metric: str
    kind: Kind
    unit: str


class SeriesTable:
    """One stream's definitions by alias, and what was decided about them.

    The arrays have one place per alias from 0 to the largest and beyond; a place is
    defined when its kind is not 0. An empty table holds nothing.

    Attributes:
        definition_ids: uint64[places], the same for equal definitions on every stream.
        kinds: int8[places], the definition's kind; 0: not defined.
        verdicts: int16[places], the ErrorReason that refuses its samples; 0: none.
        series_ids: int32[places], ids of the store; meant only where the verdict is 0.
        conversions: float64[places, 2], scale and offset of doubles; None: all are stored as sent.
        bounds: float64[places, 2], least and greatest value that is not refused; None: none is.
        defined: how many aliases are.
    """

    __slots__ = (
        "_bounded",
        "_definitions",
        "_device_of",
        "_devices",
        "_messages",
        "_placed",
        "_resolved_us",
        "_unresolved",
        "_version",
        "bounds",
        "conversions",
        "defined",
        "definition_ids",
        "kinds",
        "series_ids",
        "verdicts",
    )

    def __init__(self) -> None:
        self.definition_ids: npt.NDArray[np.uint64] = _NO_IDS
        self.kinds: npt.NDArray[np.int8] = _NO_KINDS
        self.verdicts: npt.NDArray[np.int16] = _NO_VERDICTS
        self.series_ids: npt.NDArray[np.int32] = _NO_SERIES
        self.conversions: npt.NDArray[np.float64] | None = None
        self.bounds: npt.NDArray[np.float64] | None = None
        self.defined = 0
        self._definitions: list[SeriesDefinition | None] = []
        self._messages: dict[int, str] = {}
        self._bounded: dict[int, tuple[str, str, tuple[float, float]]] = {}
        self._unresolved: list[int] = []
        # Places in `_devices` of the first `_placed` definitions, once somebody has asked.
        self._device_of: npt.NDArray[np.int32] = _NO_SERIES
        self._devices: list[str] = []
        self._placed = 0
        self._version = -1
        self._resolved_us = 0

    @property
    def places(self) -> int:
        """Return how many aliases the arrays have room for; memory goes with it, not with the series.

        For a client that counts its aliases from 0 it is less than twice their number (4 at least).
        """
        return len(self.kinds)

    def places_with(self, definitions: Iterable[tuple[int, SeriesDefinition]]) -> int:
        """Return what `places` would be after `define`, to be asked of a budget before."""
        return self._grown(max((alias for alias, _ in definitions), default=-1))

    def define(self, definitions: Sequence[tuple[int, SeriesDefinition]]) -> None:
        """Take definitions, each with its alias (below MAX_SERIES); equal ones may come again.

        Raises:
            InvalidArgument: ALIAS_REDEFINED, the alias stands for another series already;
                the table is to be given up with its stream.
        """
        self._grow(self.places_with(definitions))
        for alias, definition in definitions:
            known = self._definitions[alias]
            if known is None:
                self._add(alias, definition)
            elif known != definition:
                raise InvalidArgument(
                    f"alias {alias} stands for {_told(known)} on this stream and cannot stand for "
                    f"{_told(definition)}; use another alias, or another stream",
                    reason=ErrorReason.ERROR_REASON_ALIAS_REDEFINED,
                    metadata={"alias": str(alias)},
                )

    def definition(self, alias: int) -> SeriesDefinition:
        """Return what an alias stands for.

        Raises:
            LookupError: it is not defined.
        """
        definition = self._definitions[alias]
        if definition is None:
            raise LookupError(alias)
        return definition

    def why(self, alias: int) -> Why:
        """Return why samples of an alias are refused; for aliases with a verdict.

        Raises:
            LookupError: nothing is held against it.
        """
        return ErrorReason.ValueType(int(self.verdicts[alias])), self._messages[alias]

    def bounded(self, alias: int) -> tuple[str, str, tuple[float, float]]:
        """Return metric and unit that an alias is stored as, and the values that are not refused.

        Raises:
            LookupError: none is.
        """
        return self._bounded[alias]

    def outdate(self, *, version: int, now_us: int) -> None:
        """Give up what was decided when it is 30 s old, or when profiles have changed since.

        Args:
            version: of the tenant's profiles, as it is before they are read.
            now_us: microseconds since the epoch.
        """
        age_us = now_us - self._resolved_us
        if 0 <= age_us < (_FRESH_US if version == self._version else _CHANGED_US):
            return
        self._version = version
        self._resolved_us = now_us
        self._unresolved = np.flatnonzero(self.kinds).tolist()

    def unresolved(self, most: int) -> list[int]:
        """Return the aliases to be decided about next, at most so many; empty: all is decided."""
        return self._unresolved[:most]

    def judge(
        self, aliases: Sequence[int], profiles: Mapping[str, DeviceProfile]
    ) -> dict[int, tuple[SeriesKey, MetricProfile]]:
        """Decide which aliases' samples are refused.

        Args:
            aliases: defined ones.
            profiles: by id, those of their devices that exist in the tenant.

        Returns:
            The aliases that may be stored, with what they are stored as: `settle` ends the decision
            about them. That about all others is made.
        """
        good: dict[int, tuple[SeriesKey, MetricProfile]] = {}
        for alias in aliases:
            definition = self.definition(alias)
            profile = profiles.get(definition.device_id)
            metric = None if profile is None else profile.metric(definition.metric)
            if profile is None or metric is None or not profile.enabled or metric.kind != definition.kind:
                self.verdicts[alias], self._messages[alias] = _refusal(definition, profile)
                continue
            try:
                self._convert(alias, _conversion(definition, metric))
            except UnitError as error:
                self.verdicts[alias] = ErrorReason.ERROR_REASON_UNIT_MISMATCH
                self._messages[alias] = f"metric {definition.metric!r} is stored in {metric.unit!r}: {error}"
                continue
            name = profile.aliases.get(definition.metric, definition.metric)
            self._bound(alias, name, metric)
            good[alias] = SeriesKey(definition.device_id, name, metric.kind, metric.unit), metric
        return good

    def settle(self, judged: Sequence[int], good: Sequence[int], ids: npt.NDArray[np.int32]) -> None:
        """End the decision about what `unresolved` returned.

        Args:
            judged: as returned by `unresolved`; what was defined since waits for the next time.
            good: those of them that `judge` returned.
            ids: int32[len(good)], their series ids.
        """
        self.series_ids[good] = ids
        self.verdicts[good] = 0
        if self._messages:
            for alias in good:
                self._messages.pop(alias, None)
        del self._unresolved[: len(judged)]

    def samples_by_device(
        self, aliases: npt.NDArray[np.uint32], run_lengths: npt.NDArray[np.int64]
    ) -> dict[str, int]:
        """Return how many samples of each device runs hold.

        Args:
            aliases: uint32[r], defined ones.
            run_lengths: int64[r].
        """
        if self._placed != self.defined:
            self._place()
        # Exact, though the weights are doubles: no message holds 2^53 samples.
        counts = np.bincount(self._device_of[aliases], weights=run_lengths)
        return {self._devices[place]: int(counts[place]) for place in np.flatnonzero(counts).tolist()}

    def _place(self) -> None:
        places: dict[str, int] = {}
        self._device_of = np.zeros(self.places, np.int32)
        for alias in np.flatnonzero(self.kinds).tolist():
            self._device_of[alias] = places.setdefault(self.definition(alias).device_id, len(places))
        self._devices = list(places)
        self._placed = self.defined

    def _convert(self, alias: int, conversion: Conversion | None) -> None:
        if conversion is None and self.conversions is None:
            return
        if self.conversions is None:
            self.conversions = np.tile(_AS_SENT, (self.places, 1))
        self.conversions[alias] = _AS_SENT if conversion is None else (conversion.scale, conversion.offset)

    def _bound(self, alias: int, name: str, metric: MetricProfile) -> None:
        bounds = metric.bounds
        if bounds is None and self.bounds is None:
            return
        if bounds is not None:
            self._bounded[alias] = name, metric.unit, bounds
        if self.bounds is None:
            self.bounds = np.tile(_UNBOUNDED, (self.places, 1))
        self.bounds[alias] = _UNBOUNDED if bounds is None else bounds

    def _add(self, alias: int, definition: SeriesDefinition) -> None:
        # Each message's strings are new ones; the same few stand in many definitions.
        self._definitions[alias] = SeriesDefinition(
            sys.intern(definition.device_id),
            sys.intern(definition.metric),
            definition.kind,
            sys.intern(definition.unit),
        )
        self.definition_ids[alias] = definition_id(definition)
        self.kinds[alias] = definition.kind
        self.defined += 1
        self._unresolved.append(alias)

    def _grown(self, alias: int) -> int:
        places = len(self.kinds)
        return places if alias < places else max(alias + 1, min(2 * places, MAX_SERIES), _FIRST_PLACES)

    def _grow(self, places: int) -> None:
        more = places - len(self.kinds)
        if more > 0:
            self.definition_ids = np.concatenate((self.definition_ids, np.zeros(more, np.uint64)))
            self.kinds = np.concatenate((self.kinds, np.zeros(more, np.int8)))
            self.verdicts = np.concatenate((self.verdicts, np.zeros(more, np.int16)))
            self._definitions += [None] * more
            self.series_ids = np.concatenate((self.series_ids, np.zeros(more, np.int32)))
            if self.conversions is not None:
                self.conversions = np.concatenate((self.conversions, np.tile(_AS_SENT, (more, 1))))
            if self.bounds is not None:
                self.bounds = np.concatenate((self.bounds, np.tile(_UNBOUNDED, (more, 1))))


def definition_id(definition: SeriesDefinition) -> int:
    """Return 64 bits that stand for a definition in digests.

    The first 8 bytes, little-endian, of the SHA-256 of device, metric, kind and unit.
    Lengths stand before the texts, so no two definitions are written the same.
    """
    device_id, metric, kind, unit = definition
    written = f"{len(device_id)}:{device_id}{len(metric)}:{metric}{int(kind)}:{unit}"
    return int.from_bytes(hashlib.sha256(written.encode()).digest()[:8], "little")


def _refusal(definition: SeriesDefinition, profile: DeviceProfile | None) -> Why:
    why = outcome.why_not_taken(definition.device_id, profile)
    if why is not None:
        return why
    assert profile is not None  # noqa: S101 - or it would not be taken
    metric = profile.metric(definition.metric)
    if metric is None:
        return outcome.metric_unknown(definition.metric, profile.device_type_id)
    return outcome.kind_mismatch(definition.metric, metric.kind, definition.kind)


def _conversion(definition: SeriesDefinition, metric: MetricProfile) -> Conversion | None:
    """Return how values become those in the metric's unit, None when they are.

    Raises:
        UnitError: they cannot.
    """
    if not definition.unit:
        return metric.conversion
    if definition.unit == metric.unit:
        return None
    if metric.kind is not Kind.DOUBLE:
        raise UnitError(f"kind {metric.kind.name} is not converted, so {definition.unit!r} is no unit for it")
    return conversion(definition.unit, metric.unit)


def _told(definition: SeriesDefinition) -> str:
    unit = f" in {definition.unit!r}" if definition.unit else ""
    return f"{definition.metric!r} of {definition.device_id!r} ({definition.kind.name}{unit})"
