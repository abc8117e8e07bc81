"""The samples of `bench ingest` in line protocol, to InfluxDB and VictoriaMetrics where they are installed.

Neither waits for the disk before it answers. A line holds what one device measured at one time.
"""

import asyncio
import http.client
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np

from bench.gateway_batches import SeriesLoad
from meshkit.embedded import free_port

_START_S = 30.0
_INFLUX_CONFIG = """
reporting-disabled = true
bind-address = "127.0.0.1:{port}"
[meta]
  dir = "{folder}/meta"
[data]
  dir = "{folder}/data"
  wal-dir = "{folder}/wal"
  cache-max-memory-size = 0
  trace-logging-enabled = false
[http]
  bind-address = "127.0.0.1:{http_port}"
  log-enabled = false
  max-body-size = 0
"""


@dataclass(frozen=True, slots=True)
class Peer:
    """A database that takes line protocol.

    Attributes:
        name: of it.
        binary: what is run, when it is found.
        command: makes its arguments, of a folder for its data and its HTTP port.
        prepare: path of a POST before all others, "" for none.
    """

    name: str
    binary: str
    command: Callable[[Path, int], list[str]]
    prepare: str = ""


def _influx(folder: Path, port: int) -> list[str]:
    config = folder / "influxdb.conf"
    config.write_text(_INFLUX_CONFIG.format(folder=folder, port=free_port(), http_port=port))
    return ["-config", str(config)]


def _victoria(folder: Path, port: int) -> list[str]:
    return [f"-storageDataPath={folder}", f"-httpListenAddr=127.0.0.1:{port}", "-loggerLevel=ERROR"]


PEERS = (
    Peer("InfluxDB", "influxd", _influx, prepare=f"/query?q={quote('CREATE DATABASE bench')}"),
    Peer("VictoriaMetrics", "victoria-metrics", _victoria),
)


def installed() -> list[Peer]:
    """Return the peers that this machine has."""
    return [peer for peer in PEERS if shutil.which(peer.binary)]


async def rate(
    peer: Peer, loads: Sequence[SeriesLoad], *, metrics: int, samples: int, seconds: float
) -> float:
    """Return samples/s that a peer acknowledges, one connection per load.

    Args:
        peer: installed.
        loads: what each connection sends.
        metrics: of a device; divides the series of a load.
        samples: prepared; when they are all sent before the time is over, it ends earlier.
        seconds: how long.
    """
    per_batch = loads[0].samples_per_batch
    count = max(1, samples // len(loads) // per_batch)
    bodies = [
        [_lines(batch, place, metrics, load.run_length) for batch in _batches(load, count)]
        for place, load in enumerate(loads)
    ]
    with _running(peer) as port:
        began = time.perf_counter()
        until = began + seconds
        sent = await asyncio.gather(*(asyncio.to_thread(_send, port, own, until) for own in bodies))
        return sum(sent) * per_batch / (time.perf_counter() - began)


def _batches(load: SeriesLoad, count: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for columns in load.columns(count, first_series=0):
        yield columns.times, columns.values


def _lines(batch: tuple[np.ndarray, np.ndarray], stream: int, metrics: int, run_length: int) -> bytes:
    times, values = (column.reshape(-1, metrics, run_length) for column in batch)
    return "\n".join(
        f"pump,device={stream}-{device} "
        + ",".join(f"m{metric}={value!r}" for metric, value in enumerate(row))
        + f" {moment}"
        for device, rows in enumerate(values.swapaxes(1, 2).tolist())
        for moment, row in zip(times[device, 0].tolist(), rows, strict=True)
    ).encode()


def _send(port: int, bodies: Sequence[bytes], until: float) -> int:
    """Send bodies one after the other until a time; return how many were acknowledged."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    sent = 0
    for body in bodies:
        _post(connection, "/write?db=bench&precision=u", body)
        if time.perf_counter() > until:
            break
        sent += 1
    connection.close()
    return sent


def _post(connection: http.client.HTTPConnection, path: str, body: bytes) -> None:
    connection.request("POST", path, body)
    response = connection.getresponse()
    told = response.read()
    if response.status >= http.HTTPStatus.BAD_REQUEST:
        raise RuntimeError(f"{path}: {response.status} {told[:200]!r}")


@contextmanager
def _running(peer: Peer) -> Iterator[int]:
    """Run a peer with an empty database; yields its port."""
    with tempfile.TemporaryDirectory(prefix="twinmesh-bench-") as name:
        folder, port = Path(name), free_port()
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [shutil.which(peer.binary) or peer.binary, *peer.command(folder, port)],
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            _wait(port)
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            if peer.prepare:
                _post(connection, peer.prepare, b"")
            connection.close()
            yield port
        finally:
            process.kill()
            process.wait()


def _wait(port: int) -> None:
    end = time.monotonic() + _START_S
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            return
        except OSError:
            if time.monotonic() > end:
                raise
            time.sleep(0.05)
