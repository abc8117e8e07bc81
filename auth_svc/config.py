"""Settings of auth_svc."""

import os
from pathlib import Path

from pydantic import Field, SecretStr

from meshkit.config import (
    AUDIT_KEPT_DAYS,
    ISSUERS,
    LOGIN_QUEUE,
    LOGIN_WORKERS,
    OUTBOUND_ALLOWED,
    SIGNING_KEY_DAYS,
    AuditKeptDays,
    Issuers,
    LoginQueue,
    LoginWorkers,
    OutboundAllowed,
    RootSettings,
    ServiceSettings,
    SigningKeyDays,
)

_MOST_WORKERS_UNASKED = 4


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
    login_workers: LoginWorkers = LOGIN_WORKERS
    login_queue: LoginQueue = LOGIN_QUEUE
    audit_kept_days: AuditKeptDays = AUDIT_KEPT_DAYS
    signing_key_days: SigningKeyDays = SIGNING_KEY_DAYS
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

    @property
    def password_workers(self) -> int:
        """How many passwords are verified at once: as said, or on half the cores."""
        return self.login_workers or min(max(1, (os.cpu_count() or 1) // 2), _MOST_WORKERS_UNASKED)
