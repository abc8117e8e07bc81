"""Settings of ingest_svc."""

from pathlib import Path

from pydantic import Field, SecretStr

from ingest_svc.window import LiveWindow
from meshkit.clock import MICROS_PER_SECOND
from meshkit.config import (
    FUTURE_WINDOW_MINUTES,
    LATE_WINDOW_DAYS,
    MAX_STREAM_LIFETIME_SECONDS,
    MAX_TENANT_CONNECTIONS,
    RAW_MESSAGES,
    BusServiceSettings,
    FutureWindowMinutes,
    LateWindowDays,
    MaxStreamLifetimeSeconds,
    MaxTenantConnections,
    RawMessages,
)
from telemetry_store.retention_settings import RetentionSettings


class IngestSettings(BusServiceSettings, RetentionSettings):
    """What ingest_svc needs beside what every service needs; how long what is kept, it only tells."""

    asset_address: str = Field(description="Processes of asset_svc, host:port with commas between.")
    device_nats_url: SecretStr | None = Field(
        None,
        description="NATS URL of the account of devices that speak MQTT; empty: their messages are not read.",
    )
    nats_log: Path | None = Field(
        None,
        description="Log of that NATS, which tells there of forbidden publishes; empty: it is not read.",
    )
    late_window_days: LateWindowDays = LATE_WINDOW_DAYS
    future_window_minutes: FutureWindowMinutes = FUTURE_WINDOW_MINUTES
    max_stream_lifetime_seconds: MaxStreamLifetimeSeconds = MAX_STREAM_LIFETIME_SECONDS
    max_tenant_connections: MaxTenantConnections = MAX_TENANT_CONNECTIONS
    raw_messages: RawMessages = RAW_MESSAGES

    @property
    def live_window(self) -> LiveWindow:
        """Return the live window that the settings describe."""
        return LiveWindow(
            late_us=self.late_window_days * 86_400 * MICROS_PER_SECOND,
            future_us=self.future_window_minutes * 60 * MICROS_PER_SECOND,
        )
