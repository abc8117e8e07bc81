"""What the parts of a mesh, and the bench itself, cost."""

from contextlib import suppress

import psutil

from meshkit.testing.mesh import Mesh

GENERATOR = "load generator"
OTHERS = "other parts"
_NAMED = ("ingest_svc", "envoy", "postgres", "nats", "twin_svc", "asset_svc")


class Usage:
    """CPU time and memory of a running mesh's parts, by name; the bench itself is GENERATOR.

    Processes of one service (`ingest_svc`, `ingest_svc-2`) count as one part. Parts that no
    telemetry passes count together, as OTHERS.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._own = psutil.Process()
        self._parts: dict[str, list[psutil.Process]] = {name: [] for name in (*_NAMED, OTHERS)}
        for part in mesh.status()["parts"]:
            if part["pid"] is not None:
                name = part["name"].split("-")[0]
                self._parts[name if name in _NAMED else OTHERS].append(psutil.Process(part["pid"]))

    def cpu_seconds(self) -> dict[str, float]:
        """Return seconds of CPU used so far, of parts with their child processes, living and dead."""
        used = {name: sum(map(_with_children, processes)) for name, processes in self._parts.items()}
        own = self._own.cpu_times()
        return {**used, GENERATOR: own.user + own.system}

    def resident_bytes(self, name: str) -> int:
        """Return the resident memory of a part's own processes."""
        return sum(process.memory_info().rss for process in self._parts[name])


def _with_children(process: psutil.Process) -> float:
    times = process.cpu_times()
    # A parent is given the times of its dead children when it reaps them.
    seconds: float = times.user + times.system + times.children_user + times.children_system
    for child in process.children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            living = child.cpu_times()
            seconds += living.user + living.system
    return seconds
