"""The processes of the services: how many there are, and what each is told."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path

from gateway import devices
from meshkit import secrets
from meshkit.embedded import EmbeddedNats, free_ports
from meshkit.nats_server import NatsUser
from meshkit.service_identity import ServiceIdentity
from twinmesh_cli.ca import ca_folder
from twinmesh_cli.database import role_url
from twinmesh_cli.home import Home
from twinmesh_cli.identities import connect
from twinmesh_cli.service import ServiceProcess
from twinmesh_cli.settings import LauncherSettings

_MAINTENANCE = "maintenance"
_SERVICE_ROLES: Mapping[str, str] = {
    "auth_svc": "twinmesh_auth",
    "asset_svc": "twinmesh_asset",
    "ingest_svc": "twinmesh_ingest",
    "twin_svc": "twinmesh_twin_query",
    _MAINTENANCE: "twinmesh_maintenance",
}
_MODULES: Mapping[str, str] = {_MAINTENANCE: "telemetry_store.maintenance"}
_FEED_ROLE = "twinmesh_twin_feed"


@dataclass(frozen=True)
class Surroundings:
    """What the services live on; known once it is there.

    `nats` is the embedded server, None where one is given, and `data_dir` where PostgreSQL keeps its data,
    None where one is given and its operator does not say. `trust` is the folder of gateway/devices.py, and
    `identity` the launcher's own.
    """

    admin_url: str
    nats_url: str
    otlp_endpoint: str
    nats: EmbeddedNats | None
    data_dir: Path | None
    trust: Path
    identity: ServiceIdentity


def service_ports(settings: LauncherSettings) -> dict[str, list[int]]:
    """Picks free ports, one for each process, by service."""
    counts = {name: settings.ingest_processes if name == "ingest_svc" else 1 for name in _SERVICE_ROLES}
    free = iter(free_ports(sum(counts.values())))
    return {name: list(islice(free, count)) for name, count in counts.items()}


def service_processes(
    *,
    settings: LauncherSettings,
    home: Home,
    secret: str,
    surroundings: Surroundings,
    ports: Mapping[str, Sequence[int]],
) -> list[ServiceProcess]:
    """The processes in the order in which they start.

    Args:
        settings: what a person has set.
        home: where their logs are.
        secret: the root secret as text.
        surroundings: what they live on.
        ports: theirs, by service.
    """
    return [
        ServiceProcess(
            name=part,
            module=_MODULES.get(name, name),
            port=port,
            variables=service_variables(
                name, settings=settings, home=home, secret=secret, surroundings=surroundings, ports=ports
            ),
            log_path=home.log(part),
            connect=partial(connect, service=name, identity=surroundings.identity),
        )
        for name in _SERVICE_ROLES
        for part, port in _parts(name, ports[name]).items()
    ]


def service_variables(
    service: str,
    *,
    settings: LauncherSettings,
    home: Home,
    secret: str,
    surroundings: Surroundings,
    ports: Mapping[str, Sequence[int]],
) -> dict[str, str]:
    """What all processes of a service are told in their environment; arguments as of `service_processes`."""
    root = secrets.decode_root(secret)
    return {
        "TWINMESH_NATS_URL": surroundings.nats_url,
        "TWINMESH_AUTH_ADDRESS": _addresses(ports["auth_svc"]),
        "TWINMESH_ASSET_ADDRESS": _addresses(ports["asset_svc"]),
        "TWINMESH_INGEST_ADDRESS": _addresses(ports["ingest_svc"]),
        "TWINMESH_TWIN_ADDRESS": _addresses(ports["twin_svc"]),
        "OTEL_EXPORTER_OTLP_ENDPOINT": surroundings.otlp_endpoint,
        "OTEL_METRIC_EXPORT_INTERVAL": str(settings.metric_export_interval),
        "TWINMESH_TRACE_SAMPLE_RATIO": str(settings.trace_sample_ratio),
        "TWINMESH_LOG_LEVEL": settings.log_level,
        "TWINMESH_LATE_WINDOW_DAYS": str(settings.late_window_days),
        "TWINMESH_FUTURE_WINDOW_MINUTES": str(settings.future_window_minutes),
        "TWINMESH_RAW_MESSAGES": str(settings.raw_messages),
        "TWINMESH_RAW_MESSAGES_KEPT_DAYS": str(settings.raw_messages_kept_days),
        "TWINMESH_ARCHIVE_URL": settings.archive_url or str(home.archive),
        "TWINMESH_ARCHIVE_AFTER_DAYS": str(settings.archive_after_days),
        "TWINMESH_MINUTE_ROLLUPS_KEPT_DAYS": str(settings.minute_rollups_kept_days),
        "TWINMESH_SEAL_AFTER_MINUTES": str(settings.seal_after_minutes),
        "TWINMESH_DELETE_AFTER_DAYS": _written(settings.delete_after_days),
        "TWINMESH_MAX_STREAM_LIFETIME_SECONDS": str(settings.max_stream_lifetime_seconds),
        "TWINMESH_MAX_TENANT_CONNECTIONS": str(settings.max_tenant_connections),
        "TWINMESH_IDENTITY_DIR": str(home.identities / service),
        "TWINMESH_SERVICE_DATABASE_URL": role_url(
            surroundings.admin_url, root=root, role=_SERVICE_ROLES[service]
        ),
        **_own(service, settings, home, surroundings, secret),
    }


def _written(setting: int | None) -> str:
    return "" if setting is None else str(setting)


def _own(
    service: str, settings: LauncherSettings, home: Home, surroundings: Surroundings, secret: str
) -> Mapping[str, str]:
    """What only one service is told; of devices by MQTT nobody is with a NATS that is given."""
    nats = surroundings.nats
    match service:
        case "maintenance":
            return {
                "TWINMESH_DATABASE_DATA_DIR": str(surroundings.data_dir or ""),
                "TWINMESH_DISK_RESERVED_BYTES": _written(settings.disk_reserved_bytes),
                "TWINMESH_DATABASE_MAX_BYTES": _written(settings.database_max_bytes),
            }
        case "twin_svc":
            root = secrets.decode_root(secret)
            feed_url = role_url(surroundings.admin_url, root=root, role=_FEED_ROLE)
            return {"TWINMESH_FEED_DATABASE_URL": feed_url}
        case "auth_svc":
            return {
                "TWINMESH_MESH_SECRET": secret,
                "TWINMESH_AUDIT_KEPT_DAYS": str(settings.audit_kept_days),
                "TWINMESH_LOGIN_WORKERS": _written(settings.login_workers),
                "TWINMESH_LOGIN_QUEUE": str(settings.login_queue),
                "TWINMESH_SIGNING_KEY_DAYS": str(settings.signing_key_days),
                "TWINMESH_CALLOUT_NATS_URL": nats.url_of(NatsUser.AUTH) if nats is not None else "",
                "TWINMESH_CA_DIR": str(ca_folder(settings, home)),
                "TWINMESH_CRL_FILE": str(surroundings.trust / devices.CRL),
                "TWINMESH_DEVICE_CERTIFICATE_DAYS": str(settings.device_certificate_days),
                "TWINMESH_ISSUERS": str(settings.issuers or ""),
                "TWINMESH_OUTBOUND_ALLOWED": settings.outbound_allowed,
            }
        case "ingest_svc" if nats is not None:
            return {
                "TWINMESH_DEVICE_NATS_URL": nats.url_of(NatsUser.INGEST),
                "TWINMESH_NATS_LOG": str(nats.log_path),
            }
        case _:
            return {}


def _addresses(ports: Sequence[int]) -> str:
    return ",".join(f"127.0.0.1:{port}" for port in ports)


def _parts(service: str, ports: Sequence[int]) -> dict[str, int]:
    """The ports by the names of the processes: `ingest_svc`, `ingest_svc-2` and so on."""
    return {f"{service}-{number}" if number > 1 else service: port for number, port in enumerate(ports, 1)}
