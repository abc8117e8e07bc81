"""A caller of WatchTwins."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import grpc

from twinmesh.twin.v1 import twin_service_pb2 as contract


@dataclass
class Watcher:
    """A caller that does what the contract says.

    Attributes:
        call: the stream that is read.
        twins: what is known, by id.
        token: where to resume.
        gaps: how many were told.
        end: the last word, None while there is more.
        heard: names of events.
    """

    call: Any
    twins: dict[str, contract.Twin] = field(default_factory=dict)
    token: str = ""
    gaps: int = 0
    end: contract.End | None = None
    heard: list[str] = field(default_factory=list)
    _named: set[str] = field(default_factory=set)

    async def next(self) -> None:
        """Take the next event."""
        answer = await self.call.read()
        assert answer is not grpc.aio.EOF
        name = answer.WhichOneof("event")
        self.heard.append(name)
        match name:
            case "snapshot" | "change" | "enter":
                for twin in getattr(answer, name).twins:
                    self._take(twin)
                    self._named.add(twin.id)
            case "leave":
                for id_ in answer.leave.ids:
                    del self.twins[id_]
            case "snapshot_end":
                self.token = answer.snapshot_end.resume_token
                self.twins = {id_: twin for id_, twin in self.twins.items() if id_ in self._named}
            case "bookmark":
                self.token = answer.bookmark.resume_token
            case "gap":
                self.gaps += 1
            case "end":
                self.end = answer.end

    def resume(self, call: Any) -> None:
        """Go on with another stream."""
        self.call = call
        self.end = None
        self._named.clear()

    async def begun(self) -> "Watcher":
        """Read the snapshot."""
        await self.next()
        await self.until(lambda: self.heard[-1] == "snapshot_end")
        return self

    async def until(self, condition: Callable[[], bool]) -> None:
        """Read until something holds."""
        while not condition():
            await self.next()

    async def until_shown(self, device_id: str, metric: str, value: float) -> None:
        """Read until a twin shows a value."""
        await self.until(
            lambda: (
                device_id in self.twins
                and metric in self.twins[device_id].metrics
                and self.twins[device_id].metrics[metric].value.double_value == value
            )
        )

    def values(self) -> dict[str, dict[str, float]]:
        """Return numbers by device and metric."""
        return {
            id_: {metric: state.value.double_value for metric, state in twin.metrics.items()}
            for id_, twin in self.twins.items()
        }

    def _take(self, twin: contract.Twin) -> None:
        known = self.twins.setdefault(twin.id, contract.Twin(id=twin.id))
        for metric, state in twin.metrics.items():
            known.metrics[metric].CopyFrom(state)
        known.connectivity = twin.connectivity
        known.display_name = twin.display_name
