"""Configuration of the mesh's NATS server: accounts, users, and MQTT.

    MESH     the services, among themselves
    DEVICES  devices by MQTT, logged in by auth_svc, and ingest_svc, which reads their messages
    SYS      auth_svc, which NATS asks about log-ins

Run as a module it writes the configuration for a server in a container:
`python -m meshkit.nats_server FOLDER`.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Self

import nkeys
from pydantic import Field, model_validator

from meshkit import plaintext, secrets
from meshkit.config import RootSettings
from meshkit.mqtt import CONSUMER, DEVICES_ACCOUNT, STREAM, TELEMETRY_SUBJECT
from meshkit.runtime import read_settings

_MESH = "MESH"
_SYSTEM = "SYS"
_LOGIN_SECONDS = 5.0  # auth_svc asks the database, and asset_svc
_DEFAULT_SYNC = "2m"
_LOG_BYTES = 20_000_000


class NatsUser(StrEnum):
    """Users that have a password of their own; all others are devices."""

    SERVICE = "service"
    INGEST = "ingest"
    AUTH = "auth"


# What ingest_svc may do in the devices' account: make the stream and its own consumer of it, take,
# acknowledge and purge messages, and ask whose a connection is.
_INGEST_MAY_PUBLISH = [
    f"$JS.API.STREAM.CREATE.{STREAM}",
    f"$JS.API.STREAM.INFO.{STREAM}",
    f"$JS.API.STREAM.PURGE.{STREAM}",
    f"$JS.API.CONSUMER.DURABLE.CREATE.{STREAM}.{CONSUMER}",
    f"$JS.API.CONSUMER.INFO.{STREAM}.{CONSUMER}",
    f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{CONSUMER}",
    f"$JS.ACK.{STREAM}.{CONSUMER}.>",
    "$SYS.REQ.ACCOUNT.PING.CONNZ",
]


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files that the server can read.

    Attributes:
        certificate: its certificate chain.
        key: the private key of that.
        client_authority: certificates of the CA of which each device must show a certificate; "": none asks.
    """

    certificate: str
    key: str
    client_authority: str = ""


@dataclass(frozen=True, slots=True)
class MqttListener:
    """Where devices connect; without TLS their API keys can be read on the way."""

    host: str
    port: int
    tls: Tls | None = None


def user_password(root: bytes, user: NatsUser) -> str:
    """Return a user's password, derived from the root secret."""
    return secrets.derive_text(root, f"nats-user/{user}")


def user_url(root: bytes, user: NatsUser, *, address: str) -> str:
    """Return the URL by which a user reaches the server at host:port."""
    return f"nats://{user}:{user_password(root, user)}@{address}"


def issuer_key(root: bytes) -> bytes:
    """Return the 32 bytes of the Ed25519 key with which auth_svc signs log-ins of devices."""
    return secrets.derive(root, "nats-issuer")


def issuer(root: bytes) -> str:
    """Return its public half as an nkey of an account."""
    seed = nkeys.encode_seed(issuer_key(root), nkeys.PREFIX_BYTE_ACCOUNT)
    return str(nkeys.from_seed(seed).public_key.decode())


def server_config(
    *,
    root: bytes,
    listen: str,
    store_dir: str,
    mqtt: MqttListener | None,
    sync_always: bool = True,
    monitor: str = "",
    log_file: str = "",
) -> Mapping[str, object]:
    """Return the server's configuration, of which NATS reads JSON as its own format.

    Args:
        root: the mesh's root secret.
        listen: host:port for clients.
        store_dir: folder of JetStream's files.
        mqtt: None keeps MQTT closed.
        sync_always: a message is on disk before a device is told PUBACK; without it the last two
            minutes can be lost when the machine fails.
        monitor: host:port for health checks, "": none.
        log_file: where the server writes what it has to say, "": it prints it.
    """
    config: dict[str, object] = {
        # MQTT needs a name that stays the same over restarts.
        "server_name": "twinmesh",
        "listen": listen,
        "jetstream": {
            "store_dir": store_dir,
            "max_mem": 64 << 20,
            "max_file": 4 << 30,
            "sync_interval": "always" if sync_always else _DEFAULT_SYNC,
        },
        "max_payload": 1 << 20,
        "system_account": _SYSTEM,
        "accounts": {
            _MESH: {"jetstream": "enabled", "users": [_user(root, NatsUser.SERVICE)]},
            DEVICES_ACCOUNT: {
                "jetstream": "enabled",
                "users": [
                    _user(
                        root,
                        NatsUser.INGEST,
                        publish=_INGEST_MAY_PUBLISH,
                        subscribe=["_INBOX.>", TELEMETRY_SUBJECT, f"{TELEMETRY_SUBJECT} ingest"],
                    )
                ],
            },
            _SYSTEM: {"users": [_user(root, NatsUser.AUTH)]},
        },
        "authorization": {
            "timeout": _LOGIN_SECONDS,
            # Whoever is none of these users is a device, about which NATS asks.
            "auth_callout": {
                "issuer": issuer(root),
                "account": _SYSTEM,
                "auth_users": [user.value for user in NatsUser],
            },
        },
    }
    if mqtt is not None:
        config["mqtt"] = _mqtt(mqtt)
    if monitor:
        config["http"] = monitor
    if log_file:
        config |= {"log_file": log_file, "logfile_size_limit": _LOG_BYTES, "logfile_max_num": 2}
    return config


def _user(
    root: bytes, user: NatsUser, *, publish: Sequence[str] = (), subscribe: Sequence[str] = ()
) -> Mapping[str, object]:
    found: dict[str, object] = {
        "user": user.value,
        "password": user_password(root, user),
        "allowed_connection_types": ["STANDARD"],
    }
    if publish:
        found["permissions"] = {"publish": {"allow": publish}, "subscribe": {"allow": subscribe}}
    return found


def _mqtt(mqtt: MqttListener) -> Mapping[str, object]:
    listener: dict[str, object] = {
        "host": mqtt.host,
        "port": mqtt.port,
        "ack_wait": "30s",
        "max_ack_pending": 1000,
    }
    if mqtt.tls is not None:
        tls: dict[str, object] = {"cert_file": mqtt.tls.certificate, "key_file": mqtt.tls.key}
        if mqtt.tls.client_authority:
            # Who it is, and whether it is revoked, auth_svc says, which is told of the certificate.
            tls |= {"ca_file": mqtt.tls.client_authority, "verify": True}
        listener["tls"] = tls
    return listener


class _ServerSettings(RootSettings):
    """What the configuration of a server in a container needs."""

    mqtt_tls_certificate: str = Field("", description="Certificate chain of MQTT, a PEM file; empty: no TLS.")
    mqtt_tls_key: str = Field("", description="Its private key, a PEM file.")
    mqtt_plaintext: bool = Field(
        False, description="Whether MQTT may be plain text beyond loopback, behind a proxy that ends TLS."
    )
    mqtt_published: str = Field(
        "0.0.0.0",  # noqa: S104 - the strictest, not bound.  # nosec B104
        description="Address at which the container's port for MQTT is published.",
    )

    @model_validator(mode="after")
    def _encrypted(self) -> Self:
        problem = plaintext.unpaired(
            "MQTT", self.mqtt_tls_certificate, self.mqtt_tls_key
        ) or plaintext.refusal(
            "MQTT",
            self.mqtt_published,
            has_tls=bool(self.mqtt_tls_certificate),
            allows_plaintext=self.mqtt_plaintext,
        )
        if problem:
            raise ValueError(problem)
        return self


def main() -> None:
    """Write nats.json into the folder that the command line names."""
    settings = read_settings("meshkit.nats_server", _ServerSettings)
    tls = Tls(settings.mqtt_tls_certificate, settings.mqtt_tls_key) if settings.mqtt_tls_certificate else None
    config = server_config(
        root=settings.root_secret,
        listen="0.0.0.0:4222",
        store_dir="/data",
        mqtt=MqttListener("0.0.0.0", 1883, tls),  # noqa: S104 - of a container, which publishes it or not  # nosec B104
        monitor="127.0.0.1:8222",
        log_file="/log/nats.log",  # read by ingest_svc
    )
    Path(sys.argv[1], "nats.json").write_text(json.dumps(config, indent=2))


if __name__ == "__main__":
    main()
