"""Settings: read from the environment, files and Vault, frozen, validated, printable."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, AliasChoices, Field, PrivateAttr, SecretStr, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from meshkit import secret_places, secrets
from meshkit.addresses import Allowed

_MASK = "********"


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting as people see it; secrets are masked."""

    name: str
    value: str
    default: str
    description: str


class FiledSettings(BaseSettings):
    """Settings from the environment and, second, files; a name is TWINMESH_ and the field's in capitals."""

    model_config = SettingsConfigDict(
        env_prefix="TWINMESH_", frozen=True, extra="ignore", populate_by_name=True, env_ignore_empty=True
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from, what counts first coming first."""
        return init_settings, env_settings, _Named(settings_cls, secret_places.from_files)

    def rows(self) -> Iterator[SettingRow]:
        """Yield every setting with its value and default, secrets masked."""
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            default = (
                "(required)" if field.is_required() else _shown(field.get_default(call_default_factory=True))
            )
            yield SettingRow(environment_name(name, field), _shown(value), default, field.description or "")


class VaultSettings(FiledSettings):
    """Where the others are read from when they stand neither in the environment nor in files."""

    secrets_dir: Path | None = Field(
        None, description="Folder with a file for each setting, named as its variable; empty: none."
    )
    vault_address: str = Field(
        "", description="HashiCorp Vault that has what is set nowhere else, https://host:port; empty: none."
    )
    vault_token: SecretStr = Field(SecretStr(""), description="Vault's token.")
    vault_path: str = Field(
        "secret/twinmesh",
        description="Engine (KV version 2) and secret in it, whose keys are named as variables.",
    )
    vault_authorities: Path | None = Field(
        None, description="PEM file of who signs Vault's certificate; empty: the usual authorities."
    )

    def look_up(self) -> Callable[[str], str | None]:
        """Return what tells Vault's value of a variable, None when it has none.

        Raises:
            SettingsUnreadable: Vault does not answer or refuses.
        """
        if not self.vault_address:
            return lambda name: None
        told = secret_places.from_vault(
            self.vault_address,
            token=self.vault_token.get_secret_value(),
            path=self.vault_path,
            authorities=self.vault_authorities,
        )
        return told.get


class Settings(FiledSettings):
    """Settings from the environment, files and Vault, in this order."""

    _given: dict[str, Any] = PrivateAttr(default_factory=dict)

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self._given = given

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], *sources: Any, **named: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where settings come from, what counts first coming first."""
        before = super().settings_customise_sources(settings_cls, *sources, **named)
        return *before, _Named(settings_cls, VaultSettings().look_up())

    def reread(self) -> Self:
        """Return the settings as they are now; blocks while files and Vault are read.

        Raises:
            ValidationError: one of them is wrong.
            SettingsUnreadable: a place of them cannot be read.
        """
        return type(self)(**self._given)


class _Named(PydanticBaseSettingsSource):
    """Settings that a function tells by their environment names."""

    def __init__(self, settings_cls: type[BaseSettings], look_up: Callable[[str], str | None]) -> None:
        super().__init__(settings_cls)
        self._look_up = look_up

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[str | None, str, bool]:
        name = environment_name(field_name, field)
        # The environment's source names a field that has an alias by it; the same key lets it win.
        return self._look_up(name), name if field.validation_alias else field_name, False

    def __call__(self) -> dict[str, Any]:
        found = (self.get_field_value(field, name) for name, field in self.settings_cls.model_fields.items())
        return {key: value for value, key, _ in found if value}


def environment_name(name: str, field: FieldInfo) -> str:
    """Return the environment variable that a field is read from."""
    alias = field.validation_alias
    if isinstance(alias, AliasChoices):
        alias = alias.choices[0] if isinstance(alias.choices[0], str) else None
    return alias if isinstance(alias, str) else f"TWINMESH_{name.upper()}"


def _shown(value: object) -> str:
    if isinstance(value, SecretStr):
        return _MASK if value.get_secret_value() else ""
    return "" if value is None else str(value)


# The live window, where telemetry is taken without a declared backfill. It means something
# to several processes, which must be told the same.
LATE_WINDOW_DAYS = 7
LateWindowDays = Annotated[
    int,
    Field(ge=1, le=365, description="How many days old live telemetry may be; partitions reach as far back."),
]
# Of one gRPC message that a service takes; the gateway keeps larger ones out.
MAX_MESSAGE_BYTES = 4 * 1024 * 1024
# How long a gateway stream may last: the launcher passes it on to ingest_svc, and the gateway
# lets an idle stream live longer than the longest.
MAX_STREAM_LIFETIME_SECONDS = 3600
MaxStreamLifetimeSeconds = Annotated[
    int,
    Field(
        ge=1,
        le=3600,
        description="Longest life of a gateway stream, seconds; "
        "before it ends the client is asked to reconnect.",
    ),
]
MAX_TENANT_CONNECTIONS = 20_000
MaxTenantConnections = Annotated[
    int,
    Field(
        ge=1,
        le=1_000_000,
        description="How many connections a tenant may have open at once, of all services: streams, watches,"
        " exports and devices at MQTT. A tenant's own limit may be lower.",
    ),
]
FUTURE_WINDOW_MINUTES = 10
FutureWindowMinutes = Annotated[
    int,
    Field(
        ge=0,
        le=1440,
        description="How many minutes ahead of the server's clock live telemetry may be; history without"
        " an end reaches as far.",
    ),
]
# The raw audit trail: ingest_svc keeps messages, maintenance ends them.
RAW_MESSAGES = True
RawMessages = Annotated[
    bool, Field(description="Whether every message is kept as it was received, for the audit trail.")
]
RAW_MESSAGES_KEPT_DAYS = 7
RawMessagesKeptDays = Annotated[int, Field(ge=1, le=3650, description="How many days raw messages are kept.")]
# Where old samples lie: maintenance brings them there, twin_svc reads them.
ARCHIVE_URL = ""


def _without_password(url: str) -> str:
    # Settings are printed; a store takes credentials from its own part of the environment.
    if urlsplit(url).password is not None:
        raise ValueError("an archive's URL has no password; the object store takes it from its own variables")
    return url


ArchiveUrl = Annotated[
    str,
    AfterValidator(_without_password),
    Field(
        description="Folder of the archive: a path, s3://bucket/folder or another URL of fsspec's;"
        " empty: none."
    ),
]
ARCHIVE_AFTER_DAYS = 90
ArchiveAfterDays = Annotated[
    int, Field(ge=1, le=36_500, description="After how many days sealed samples go to the archive.")
]
MINUTE_ROLLUPS_KEPT_DAYS = 7
MinuteRollupsKeptDays = Annotated[
    int,
    Field(
        ge=1,
        le=400,
        description="How many days rollups of minutes are kept; older ones are computed when asked for.",
    ),
]
# How long samples and events are kept: maintenance deletes them, twin_svc tells what a policy would delete.
DELETE_AFTER_DAYS: int | None = None
DeleteAfterDays = Annotated[
    int | None,
    Field(ge=1, le=36_500, description="After how many days samples and events are deleted; empty: never."),
]
# How full PostgreSQL may become; the launcher passes it on to maintenance.
DATABASE_DATA_DIR: Path | None = None
DatabaseDataDir = Annotated[
    Path | None,
    Field(
        description="Folder of PostgreSQL's data, on this machine: new data are refused before its disk is"
        " full; empty: it is elsewhere, and only its operator knows."
    ),
]
DISK_RESERVED_BYTES: int | None = None
DiskReservedBytes = Annotated[
    int | None,
    Field(
        ge=0,
        description="Bytes of PostgreSQL's disk that stay free: new data are refused when fewer are; empty:"
        " 5 %, at least 1 GiB and at most 20.",
    ),
]
DATABASE_MAX_BYTES: int | None = None
DatabaseMaxBytes = Annotated[
    int | None,
    Field(ge=1, description="Size of the database from which on new data are refused; empty: any."),
]
# auth_svc keeps the audit, verifies passwords and signs tokens; the launcher passes it on.
AUDIT_KEPT_DAYS = 90
AuditKeptDays = Annotated[int, Field(ge=30, le=3650, description="How many days audit events are kept.")]
LOGIN_WORKERS: int | None = None
LoginWorkers = Annotated[
    int | None,
    Field(
        ge=1,
        le=64,
        description="Passwords verified at once (64 MiB each, and a core, for long a quarter of one);"
        " empty: half the cores, 1 to 4.",
    ),
]
LOGIN_QUEUE = 16
LoginQueue = Annotated[
    int, Field(ge=0, le=1024, description="Log-ins that may wait; more are told LOGIN_BUSY.")
]
SIGNING_KEY_DAYS = 30
SigningKeyDays = Annotated[
    int, Field(ge=1, le=365, description="Days that a key signs tokens before the next is made.")
]
METRIC_EXPORT_INTERVAL = 10_000
MetricExportInterval = Annotated[
    int,
    Field(
        ge=100,
        validation_alias="OTEL_METRIC_EXPORT_INTERVAL",
        description="Time between two exports of metrics, milliseconds.",
    ),
]
# Whose tokens are exchanged, and whom services may call inside: the launcher passes it on to auth_svc.
ISSUERS: Path | None = None
Issuers = Annotated[
    Path | None,
    Field(
        description="YAML file of the OIDC issuers whose tokens are exchanged, read anew every 30 s;"
        " empty: none."
    ),
]
OUTBOUND_ALLOWED = ""


def _allowed(text: str) -> str:
    Allowed.parse(text)
    return text


OutboundAllowed = Annotated[
    str,
    AfterValidator(_allowed),
    Field(
        description="What URLs of issuers may name although it is not on the internet or has no TLS:"
        " host names, addresses and networks in CIDR form, with commas between them."
    ),
]
SEAL_AFTER_MINUTES = 30.0
SealAfterMinutes = Annotated[
    float,
    Field(ge=0, le=1440, description="How many minutes commits stay findable before they may be sealed."),
]


class RootSettings(Settings):
    """The root secret, for the few that derive secrets of it."""

    mesh_secret: SecretStr = Field(description="Root secret of the mesh, base64url of 32 bytes or more.")

    @field_validator("mesh_secret")
    @classmethod
    def _decodes(cls, value: SecretStr) -> SecretStr:
        secrets.decode_root(value.get_secret_value())
        return value

    @property
    def root_secret(self) -> bytes:
        """Return the root secret's bytes."""
        return secrets.decode_root(self.mesh_secret.get_secret_value())


class ServiceSettings(Settings):
    """What every service needs."""

    listen: str = Field("127.0.0.1:0", description="Address of the gRPC server, host:port.")
    service_database_url: SecretStr = Field(description="PostgreSQL URL with the service's own role.")
    identity_dir: Path = Field(
        description="Folder of the service's certificate and key (identity.pem) and of the CA's certificates"
        " (authorities.pem); replaced while it runs."
    )
    auth_address: str = Field(description="Processes of auth_svc, host:port with commas between.")
    otlp_endpoint: str = Field(
        "",
        validation_alias="OTEL_EXPORTER_OTLP_ENDPOINT",
        description="OTLP/gRPC receiver of traces and metrics, http://host:port; empty: none.",
    )
    metric_export_interval: MetricExportInterval = METRIC_EXPORT_INTERVAL
    trace_sample_ratio: float = Field(1.0, ge=0, le=1, description="Share of traces to record.")
    log_level: str = Field("INFO", pattern="^(DEBUG|INFO|WARNING|ERROR)$", description="Least level logged.")

    @property
    def database_url(self) -> str:
        """Return the database URL in the clear."""
        return self.service_database_url.get_secret_value()


class BusServiceSettings(ServiceSettings):
    """What a service needs that talks on the bus."""

    nats_url: SecretStr = Field(description="NATS URL with credentials.")
