"""Settings of twin_svc."""

from datetime import timedelta

from pydantic import Field, SecretStr

from meshkit.config import (
    DELETE_AFTER_DAYS,
    FUTURE_WINDOW_MINUTES,
    BusServiceSettings,
    DeleteAfterDays,
    FutureWindowMinutes,
)
from telemetry_store.storage_policies import Retention


class TwinSettings(BusServiceSettings):
    """What twin_svc needs beside what every service needs.

    `service_database_url` is of the role twinmesh_twin_query, which sees one tenant per
    transaction.
    """

    feed_database_url: SecretStr = Field(
        description="PostgreSQL URL with the role twinmesh_twin_feed, which follows all tenants' commits."
    )
    asset_address: str = Field(description="Address of asset_svc, host:port.")
    feed_poll_ms: int = Field(
        1_000, ge=10, le=60_000, description="How often commits that were not announced are looked for."
    )
    future_window_minutes: FutureWindowMinutes = FUTURE_WINDOW_MINUTES
    delete_after_days: DeleteAfterDays = DELETE_AFTER_DAYS

    @property
    def feed_url(self) -> str:
        """Return the feed's database URL in the clear."""
        return self.feed_database_url.get_secret_value()

    @property
    def retention(self) -> Retention:
        """Return how long tenants keep what that say nothing."""
        return Retention(
            delete_after=None if self.delete_after_days is None else timedelta(days=self.delete_after_days)
        )
