"""Settings of the launcher and the command line."""

from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, SecretStr, ValidationInfo, field_validator, model_validator

from gateway.settings import (
    REQUESTS_PER_SECOND,
    CorsOrigins,
    Endpoint,
    Plaintext,
    RequestsPerSecond,
    TlsCertificate,
    TlsKey,
    TrustedHops,
)
from meshkit import plaintext, secrets
from meshkit.ca.names import TRUST_DOMAIN_PATTERN
from meshkit.config import (
    ARCHIVE_AFTER_DAYS,
    AUDIT_KEPT_DAYS,
    DATABASE_DATA_DIR,
    DATABASE_MAX_BYTES,
    DELETE_AFTER_DAYS,
    DISK_RESERVED_BYTES,
    FUTURE_WINDOW_MINUTES,
    ISSUERS,
    LATE_WINDOW_DAYS,
    LOGIN_QUEUE,
    LOGIN_WORKERS,
    MAX_STREAM_LIFETIME_SECONDS,
    MAX_TENANT_CONNECTIONS,
    METRIC_EXPORT_INTERVAL,
    MINUTE_ROLLUPS_KEPT_DAYS,
    OUTBOUND_ALLOWED,
    RAW_MESSAGES,
    RAW_MESSAGES_KEPT_DAYS,
    SEAL_AFTER_MINUTES,
    SIGNING_KEY_DAYS,
    ArchiveAfterDays,
    ArchiveUrl,
    AuditKeptDays,
    DatabaseDataDir,
    DatabaseMaxBytes,
    DeleteAfterDays,
    DiskReservedBytes,
    FutureWindowMinutes,
    Issuers,
    LateWindowDays,
    LoginQueue,
    LoginWorkers,
    MaxStreamLifetimeSeconds,
    MaxTenantConnections,
    MetricExportInterval,
    MinuteRollupsKeptDays,
    OutboundAllowed,
    RawMessages,
    RawMessagesKeptDays,
    SealAfterMinutes,
    Settings,
    SigningKeyDays,
)
from meshkit.runtime import read_settings

_CHECKOUT = Path(__file__).resolve().parent.parent


def _default_home() -> Path:
    """The checkout's own folder, so that commands find it from anywhere, or the present one without any."""
    root = _CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.cwd()
    return root / ".twinmesh"


class LauncherSettings(Settings):
    """What a person may set; everything else is derived or picked."""

    home: Path = Field(_default_home(), description="Folder of all data, secrets and logs.")
    gateway_port: int = Field(8080, ge=1, le=65535, description="Port for gRPC, gRPC-Web and JSON.")
    bind: str = Field("127.0.0.1", description="Address that the gateway and MQTT listen on.")
    gateway_tls_certificate: TlsCertificate = None
    gateway_tls_key: TlsKey = None
    gateway_plaintext: Plaintext = False
    mqtt_port: int = Field(1883, ge=1, le=65535, description="Port for MQTT.")
    mqtt_tls_certificate: Path | None = Field(
        None, description="Certificate chain of MQTT, a PEM file; without it MQTT is not encrypted."
    )
    mqtt_tls_key: Path | None = Field(None, description="Its private key, a PEM file.")
    mqtt_plaintext: bool = Field(
        False, description="Whether MQTT may be plain text beyond loopback, behind a proxy that ends TLS."
    )
    device_port: int = Field(
        8443,
        ge=1,
        le=65535,
        description="Port where devices show their certificates, for gRPC and JSON over TLS 1.3.",
    )
    server_names: str = Field(
        "",
        description="Names and addresses by which devices know this machine, commas between them;"
        " they stand in certificates beside TWINMESH_BIND, the machine's name and loopback.",
    )
    trust_domain: str = Field(
        "twinmesh",
        pattern=f"^{TRUST_DOMAIN_PATTERN}$",
        description="Name of the installation in certificates; that of its CA stays once there is one.",
    )
    ca_dir: Path | None = Field(
        None, description="Folder of the CA, made at the first start; folder ca of the home if unset."
    )
    device_certificate_days: int = Field(
        90, ge=1, le=825, description="Life of device certificates for which nothing else is asked."
    )
    mqtt_client_certificates: bool = Field(
        False,
        description="Whether devices show their certificates at MQTT, instead of API keys; then it is"
        " encrypted, by a certificate of the installation's CA unless another is given.",
    )
    mqtt_sync: bool = Field(
        True,
        description="Whether a message is on disk before its device is told so; without it what came in the"
        " last two minutes can be lost when the machine fails.",
    )
    admin_password: Annotated[SecretStr, Field(min_length=8, max_length=1024)] | None = Field(
        None, description="First password of user admin of tenant demo; generated and printed once if unset."
    )
    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL to use instead of the embedded one; a role with CREATEROLE and BYPASSRLS.",
    )
    nats_url: SecretStr | None = Field(None, description="NATS to use instead of the embedded one.")
    otlp_endpoint: str = Field(
        "",
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="OTLP/gRPC receiver of traces and metrics to use instead of the embedded one,"
        " http://host:port.",
    )
    metric_export_interval: MetricExportInterval = METRIC_EXPORT_INTERVAL
    mesh_secret: SecretStr | None = Field(
        None,
        description="Root secret, base64url of 32 bytes or more; generated and kept in the home if unset.",
    )
    issuers: Issuers = ISSUERS
    outbound_allowed: OutboundAllowed = OUTBOUND_ALLOWED
    cors_origins: CorsOrigins = ""
    gateway_requests_per_second: RequestsPerSecond = REQUESTS_PER_SECOND
    gateway_trusted_hops: TrustedHops = 0
    ingest_processes: int = Field(
        1, ge=1, le=16, description="Processes of ingest_svc, which share the gateway streams."
    )
    max_stream_lifetime_seconds: MaxStreamLifetimeSeconds = MAX_STREAM_LIFETIME_SECONDS
    max_tenant_connections: MaxTenantConnections = MAX_TENANT_CONNECTIONS
    late_window_days: LateWindowDays = LATE_WINDOW_DAYS
    future_window_minutes: FutureWindowMinutes = FUTURE_WINDOW_MINUTES
    raw_messages: RawMessages = RAW_MESSAGES
    raw_messages_kept_days: RawMessagesKeptDays = RAW_MESSAGES_KEPT_DAYS
    audit_kept_days: AuditKeptDays = AUDIT_KEPT_DAYS
    login_workers: LoginWorkers = LOGIN_WORKERS
    login_queue: LoginQueue = LOGIN_QUEUE
    signing_key_days: SigningKeyDays = SIGNING_KEY_DAYS
    archive_url: ArchiveUrl | None = Field(
        None,
        description="Folder of the archive: a path, s3://bucket/folder or another URL of fsspec's;"
        " folder archive of the home if unset.",
    )
    archive_after_days: ArchiveAfterDays = ARCHIVE_AFTER_DAYS
    minute_rollups_kept_days: MinuteRollupsKeptDays = MINUTE_ROLLUPS_KEPT_DAYS
    seal_after_minutes: SealAfterMinutes = SEAL_AFTER_MINUTES
    delete_after_days: DeleteAfterDays = DELETE_AFTER_DAYS
    database_data_dir: DatabaseDataDir = DATABASE_DATA_DIR
    disk_reserved_bytes: DiskReservedBytes = DISK_RESERVED_BYTES
    database_max_bytes: DatabaseMaxBytes = DATABASE_MAX_BYTES
    simulate: bool = Field(
        True,
        description="Whether a small simulated fleet sends in tenant demo;"
        " with a database that is given only if this is set.",
    )
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of traces to record.")
    log_level: str = Field(
        "INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level that services log."
    )

    @field_validator(
        *("home", "ca_dir", "issuers", "gateway_tls_certificate", "gateway_tls_key"),
        *("mqtt_tls_certificate", "mqtt_tls_key"),
    )
    @classmethod
    def _from_anywhere(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None else None

    @field_validator("database_data_dir")
    @classmethod
    def _of_a_given_database(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is None:
            return None
        if info.data.get("database_url") is None:
            raise ValueError(
                "it goes with TWINMESH_DATABASE_URL; the embedded PostgreSQL's disk is looked at anyway"
            )
        return value.expanduser().absolute()

    @field_validator("bind")
    @classmethod
    def _is_address(cls, value: str) -> str:
        ip_address(value)
        return value

    @field_validator("mqtt_port")
    @classmethod
    def _free_of_the_gateway(cls, value: int, info: ValidationInfo) -> int:
        if value == info.data.get("gateway_port"):
            raise ValueError("the gateway has this port")
        return value

    @field_validator("device_port")
    @classmethod
    def _free_of_others(cls, value: int, info: ValidationInfo) -> int:
        if value in (info.data.get("gateway_port"), info.data.get("mqtt_port")):
            raise ValueError("the gateway or MQTT has this port")
        return value

    @field_validator("otlp_endpoint")
    @classmethod
    def _is_endpoint(cls, value: str) -> str:
        if value:
            Endpoint.parse(value)
        return value

    @field_validator("mesh_secret")
    @classmethod
    def _decodes(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            secrets.decode_root(value.get_secret_value())
        return value

    @model_validator(mode="after")
    def _certificate_with_key(self) -> Self:
        problem = plaintext.unpaired(
            "GATEWAY", self.gateway_tls_certificate, self.gateway_tls_key
        ) or plaintext.unpaired("MQTT", self.mqtt_tls_certificate, self.mqtt_tls_key)
        if problem:
            raise ValueError(problem)
        return self

    @property
    def edge_files(self) -> tuple[Path, Path] | None:
        """Certificate and key of the gateway's main port, None when it has no TLS."""
        if self.gateway_tls_certificate is None or self.gateway_tls_key is None:
            return None
        return self.gateway_tls_certificate, self.gateway_tls_key

    @property
    def wants_simulation(self) -> bool:
        """Whether a simulated fleet is to send: nobody wants one in a database of their own unasked."""
        return self.simulate and (self.database_url is None or "simulate" in self.model_fields_set)

    @property
    def gateway_host(self) -> str:
        """The host by which this machine reaches the gateway."""
        everywhere = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - recognised, not bound.  # nosec B104
        host = everywhere.get(self.bind, self.bind)
        return f"[{host}]" if ":" in host and not host.startswith("[") else host

    @property
    def gateway_url(self) -> str:
        """The address to give to clients on this machine."""
        return f"{'https' if self.gateway_tls_certificate else 'http'}://{self.gateway_address}"

    @property
    def client_address(self) -> str:
        """The gateway's address as commands for clients take it."""
        return self.gateway_url if self.gateway_tls_certificate else self.gateway_address

    @property
    def gateway_address(self) -> str:
        """The gateway's host:port for clients on this machine."""
        return f"{self.gateway_host}:{self.gateway_port}"

    @property
    def device_address(self) -> str:
        """The host:port where devices show their certificates, for clients on this machine."""
        return f"{self.gateway_host}:{self.device_port}"

    @property
    def mqtt_address(self) -> str:
        """MQTT's host:port for clients on this machine."""
        return f"{self.gateway_host}:{self.mqtt_port}"


def load_settings() -> LauncherSettings:
    """Reads the environment; exits with status 2 and a line per wrong setting."""
    return read_settings("twinmesh", LauncherSettings)
