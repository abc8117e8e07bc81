"""Settings of auth_svc."""

import os
from pathlib import Path

from pydantic import Field, SecretStr

from meshkit.config import (
    AUDIT_KEPT_DAYS,
    ISSUERS,
    OUTBOUND_ALLOWED,
    AuditKeptDays,
    Issuers,
    OutboundAllowed,
    RootSettings,
    ServiceSettings,
)

_MOST_WORKERS_UNASKED = 4


def _half_the_cores() -> int:
    return min(max(1, (os.cpu_count() or 1) // 2), _MOST_WORKERS_UNASKED)


class AuthSettings(RootSettings, ServiceSettings):
    """What auth_svc needs on top of every service's settings."""

    asset_address: str = Field(
        description="Processes of asset_svc, host:port with commas between; asked for devices and health."
    )
    ingest_address: str = Field(description="Processes of ingest_svc, likewise; they count connections too.")
    twin_address: str = Field(description="Processes of twin_svc, likewise.")
    nats_url: SecretStr | None = Field(
        None,
        description="NATS URL with credentials, to announce revocations; empty: services read of them"
        " within a second.",
    )
    callout_nats_url: SecretStr | None = Field(
        None,
        description="NATS URL of its system account, for log-ins of devices by MQTT; empty: none log in.",
    )
    login_workers: int = Field(
        default_factory=_half_the_cores,
        ge=1,
        le=64,
        description="Passwords verified at once (one core, 64 MiB each); empty: half the cores, 1 to 4.",
    )
    login_queue: int = Field(
        16, ge=0, le=1024, description="Log-ins that may wait; more are told LOGIN_BUSY."
    )
    audit_kept_days: AuditKeptDays = AUDIT_KEPT_DAYS
    signing_key_days: int = Field(
        30, ge=1, le=365, description="Days that a key signs before the next is made."
    )
    ca_dir: Path | None = Field(
        None,
        description="Folder of the CA, as `twinmesh ca init` makes it; empty: no device certificates.",
    )
    crl_file: Path | None = Field(
        None, description="File that the CRL is kept in for Envoy, PEM, in a folder by itself; empty: none."
    )
    device_certificate_days: int = Field(
        90, ge=1, le=825, description="Life of device certificates for which nothing else is asked."
    )
    issuers: Issuers = ISSUERS
    outbound_allowed: OutboundAllowed = OUTBOUND_ALLOWED
