"""Settings of ingest_svc."""

from pydantic import Field

from ingest_svc.window import LiveWindow
from meshkit.clock import MICROS_PER_SECOND
from meshkit.config import BusServiceSettings


class IngestSettings(BusServiceSettings):
    """What ingest_svc needs beside what every service needs."""

    asset_address: str = Field(description="Address of asset_svc, host:port.")
    late_window_days: int = Field(
        7, ge=1, le=365, description="How many days old live telemetry may be; maintenance keeps as many."
    )
    future_window_minutes: int = Field(
        10, ge=0, le=1440, description="How far ahead of the server's clock live telemetry may be."
    )

    @property
    def live_window(self) -> LiveWindow:
        """Return the live window that the settings describe."""
        return LiveWindow(
            late_us=self.late_window_days * 86_400 * MICROS_PER_SECOND,
            future_us=self.future_window_minutes * 60 * MICROS_PER_SECOND,
        )
