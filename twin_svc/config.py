"""Settings of twin_svc."""

from pydantic import Field, SecretStr

from meshkit.config import FUTURE_WINDOW_MINUTES, BusServiceSettings, FutureWindowMinutes
from telemetry_store.retention_settings import RetentionSettings


class TwinSettings(BusServiceSettings, RetentionSettings):
    """What twin_svc needs beside what every service needs.

    `service_database_url` is of the role twinmesh_twin_query, which sees one tenant per
    transaction.
    """

    feed_database_url: SecretStr = Field(
        description="PostgreSQL URL with the role twinmesh_twin_feed, which follows all tenants' commits."
    )
    asset_address: str = Field(description="Processes of asset_svc, host:port with commas between.")
    ingest_address: str = Field(
        description="Processes of ingest_svc, which count connections, host:port with commas between."
    )
    feed_poll_ms: int = Field(
        1_000, ge=10, le=60_000, description="How often commits that were not announced are looked for."
    )
    future_window_minutes: FutureWindowMinutes = FUTURE_WINDOW_MINUTES

    @property
    def feed_url(self) -> str:
        """Return the feed's database URL in the clear."""
        return self.feed_database_url.get_secret_value()
