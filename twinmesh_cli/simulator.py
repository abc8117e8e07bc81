"""The simulated fleet of `twinmesh up` as a part: `twinmesh simulate`, until it is stopped."""

import shutil
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path

from meshkit.embedded import ChildProcess, Part
from twinmesh_cli.service import module_command, service_environment

_DEVICES = 20
# Another name than `twinmesh simulate` has by itself: two machines do not measure as one device.
_PREFIX = "demo"


class Simulator(Part):
    """A small fleet in the tenant of the key.

    Args:
        gateway: its address, and what a client must be told of its certificate, by variable.
        api_key: of a role that may write telemetry, devices and device types.
        spool: folder for what is not durable yet. What is in it belongs to another key and is deleted.
        log_path: takes its output.
    """

    name = "simulator"

    def __init__(self, *, gateway: Mapping[str, str], api_key: str, spool: Path, log_path: Path) -> None:
        super().__init__()
        self._spool = spool
        shutil.rmtree(spool, ignore_errors=True)
        self._variables = {**gateway, "TWINMESH_API_KEY": api_key}
        self._log_path = log_path

    def is_ready(self) -> bool:
        """Whether it lives: nobody calls it."""
        return self.running

    def _starting(self) -> Iterator[None]:
        self._process = ChildProcess(
            command=module_command(
                "twinmesh_cli",
                "simulate",
                *("--devices", str(_DEVICES), "--prefix", _PREFIX, "--jitter", "--spool", str(self._spool)),
            ),
            log_path=self._log_path,
            environment=service_environment(self._variables),
            # It asks for outcomes a while, which a gateway that is gone does not give.
            stop_signals=((signal.SIGTERM, 10.0),),
        )
        self._process.spawn()
        yield
