"""What a watch has told: twins as they are known now, and what each event changes of that.

It does what the contract of WatchTwins asks of a caller: a resumed watch leaves out the
metrics that were told before, and names all twins that there still are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from twinmesh.twin.v1 import twin_service_pb2 as contract

_ONLINE = {contract.CONNECTIVITY_ONLINE: True, contract.CONNECTIVITY_OFFLINE: False}


class What(StrEnum):
    """What there is to tell."""

    VALUE = "value"
    CONNECTIVITY = "connectivity"
    LEAVE = "leave"
    GAP = "gap"


@dataclass(frozen=True, slots=True)
class Metric:
    """The latest sample of a metric.

    Attributes:
        value: of the kind that the contract has: float, int, bool, str or Point.
        unit: of the value.
        time_us: its event time, microseconds since the epoch.
    """

    value: Any
    unit: str
    time_us: int


@dataclass(frozen=True, slots=True)
class Told:
    """One change.

    Attributes:
        what: changed.
        device: whose; empty in a gap.
        name: of the metric, empty unless a value changed.
        metric: its latest sample, None unless a value changed.
        is_online: whether the device still reports, None when nobody can tell.
    """

    what: What
    device: str = ""
    name: str = ""
    metric: Metric | None = None
    is_online: bool | None = None


class Watched:
    """The twins of one selection, through all of its watches.

    Attributes:
        resume_token: where the next watch goes on.
        metrics: by device and metric, those that changed last at the end.
        online: by device, whether it still reports, None when nobody can tell.
        is_whole: the first snapshot has ended.
    """

    def __init__(self) -> None:
        self.resume_token = ""
        self.metrics: dict[tuple[str, str], Metric] = {}
        self.online: dict[str, bool | None] = {}
        self.is_whole = False
        self._names: dict[str, set[str]] = {}
        self._named: set[str] = set()
        self._starts_anew = False

    def begin(self) -> None:
        """Expect a snapshot: another watch begins."""
        self._named.clear()
        self._starts_anew = False

    def take(self, response: contract.WatchTwinsResponse) -> list[Told]:
        """Take an event; return what it changes of what was known before."""
        told: list[Told] = []
        match response.WhichOneof("event"):
            case "snapshot":
                told = self._take_all(response.snapshot.twins, is_snapshot=True)
            case "change":
                told = self._take_all(response.change.twins)
            case "enter":
                told = self._take_all(response.enter.twins, is_whole=True)
            case "leave":
                told = [told for device in response.leave.ids for told in self._drop(device)]
            case "snapshot_end":
                told = self._end_snapshot(response.snapshot_end.resume_token)
            case "bookmark":
                self.resume_token = response.bookmark.resume_token
            case "end":
                self.resume_token = response.end.resume_token or self.resume_token
            case "gap":
                # In a watch that begins, a snapshot of everything follows; in one that goes on, changes.
                self.begin()
                self._starts_anew = True
                told = [Told(What.GAP)]
        return told

    def _take_all(
        self, twins: Iterable[contract.Twin], *, is_snapshot: bool = False, is_whole: bool = False
    ) -> list[Told]:
        told: list[Told] = []
        for twin in twins:
            is_anew = is_whole or (is_snapshot and self._starts_anew and twin.id not in self._named)
            self._named.add(twin.id)
            if is_anew:
                self._forget_metrics_except(twin)
            told += self._take(twin)
        told.sort(key=lambda each: each.metric.time_us if each.metric else 0)
        for each in told:
            if each.metric is not None:
                key = each.device, each.name
                # Put at the end.
                self.metrics.pop(key, None)
                self.metrics[key] = each.metric
        return told

    def _take(self, twin: contract.Twin) -> Iterator[Told]:
        is_online = _ONLINE.get(twin.connectivity)
        before = self.online.get(twin.id)
        self.online[twin.id] = is_online
        names = self._names.setdefault(twin.id, set())
        if before is not None and before != is_online:
            yield Told(What.CONNECTIVITY, twin.id, is_online=is_online)
        for name, state in twin.metrics.items():
            kind = state.value.WhichOneof("kind")
            metric = Metric(getattr(state.value, kind) if kind else None, state.unit, _micros(state.time))
            names.add(name)
            if self.metrics.get((twin.id, name)) != metric:
                yield Told(What.VALUE, twin.id, name, metric, is_online)

    def _forget_metrics_except(self, twin: contract.Twin) -> None:
        names = self._names.get(twin.id, set())
        for name in names - set(twin.metrics):
            del self.metrics[twin.id, name]
        names.intersection_update(twin.metrics)

    def _end_snapshot(self, resume_token: str) -> list[Told]:
        gone = [device for device in self.online if device not in self._named]
        told = [told for device in gone for told in self._drop(device)]
        self.metrics = dict(sorted(self.metrics.items(), key=lambda item: item[1].time_us))
        self.resume_token = resume_token
        self.is_whole = True
        self._starts_anew = False
        return told

    def _drop(self, device: str) -> Iterator[Told]:
        for name in self._names.pop(device, ()):
            del self.metrics[device, name]
        if self.online.pop(device, _UNKNOWN) is not _UNKNOWN:
            yield Told(What.LEAVE, device)


_UNKNOWN = object()


def _micros(time: Any) -> int:
    return int(time.ToMicroseconds())
