"""What a person sets for the launcher reaches the services that have the same setting."""

import base64
from pathlib import Path
from typing import Any

import pytest

from asset_svc.config import AssetSettings
from auth_svc.config import AuthSettings
from ingest_svc.config import IngestSettings
from meshkit.config import Settings
from meshkit.testing import identities
from telemetry_store.maintenance.config import MaintenanceSettings
from twin_svc.config import TwinSettings
from twinmesh_cli.home import Home
from twinmesh_cli.processes import Surroundings, service_ports, service_variables
from twinmesh_cli.settings import LauncherSettings

_SECRET = base64.urlsafe_b64encode(bytes(range(32))).decode()
# None of them the default.
_SET: dict[str, Any] = {
    "trace_sample_ratio": 0.5,
    "log_level": "WARNING",
    "metric_export_interval": 1234,
    "late_window_days": 3,
    "future_window_minutes": 4,
    "raw_messages": False,
    "raw_messages_kept_days": 5,
    "audit_kept_days": 31,
    "login_workers": 6,
    "login_queue": 7,
    "signing_key_days": 8,
    "archive_url": "s3://old/samples",
    "archive_after_days": 9,
    "minute_rollups_kept_days": 10,
    "seal_after_minutes": 11.0,
    "delete_after_days": 12,
    "disk_reserved_bytes": 13,
    "database_max_bytes": 14,
    "max_stream_lifetime_seconds": 1500,
    "max_tenant_connections": 16,
    "device_certificate_days": 17,
    "issuers": Path("/etc/twinmesh/issuers.yaml"),
    "outbound_allowed": "10.1.0.0/16",
    "ca_dir": Path("/etc/twinmesh/ca"),
}
# What the launcher knows better: of what it started itself it passes on its own.
_ITS_OWN = {"nats_url", "mesh_secret", "otlp_endpoint", "database_data_dir"}


@pytest.mark.parametrize(
    ("service", "settings"),
    [
        ("auth_svc", AuthSettings),
        ("asset_svc", AssetSettings),
        ("ingest_svc", IngestSettings),
        ("twin_svc", TwinSettings),
        ("maintenance", MaintenanceSettings),
    ],
)
def test_a_service_has_what_was_set_for_the_launcher(
    service: str, settings: type[Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = settings.model_fields.keys() & LauncherSettings.model_fields.keys() - _ITS_OWN
    assert shared <= _SET.keys()
    set_ = LauncherSettings.model_construct(**{**LauncherSettings(home=tmp_path).model_dump(), **_SET})
    told = service_variables(
        service,
        settings=set_,
        home=Home(tmp_path),
        secret=_SECRET,
        surroundings=Surroundings(
            admin_url="postgresql://migrator:word@127.0.0.1:5432/twinmesh",
            nats_url="nats://127.0.0.1:4222",
            otlp_endpoint="",
            nats=None,
            data_dir=None,
            trust=tmp_path,
            identity=identities.identity("launcher"),
        ),
        ports=service_ports(set_),
    )
    for name, value in {**told, "TWINMESH_LISTEN": "127.0.0.1:0"}.items():
        monkeypatch.setenv(name, value)

    read = settings()

    assert {name: getattr(read, name) for name in shared} == {name: _SET[name] for name in shared}
