"""Settings of the maintenance worker."""

from datetime import timedelta

from pydantic import Field

from meshkit.config import (
    LATE_WINDOW_DAYS,
    MINUTE_ROLLUPS_KEPT_DAYS,
    RAW_MESSAGES_KEPT_DAYS,
    LateWindowDays,
    MinuteRollupsKeptDays,
    RawMessagesKeptDays,
    ServiceSettings,
)


class MaintenanceSettings(ServiceSettings):
    """What maintenance needs beside what every service needs."""

    late_window_days: LateWindowDays = LATE_WINDOW_DAYS
    request_ids_kept_minutes: int = Field(
        60, ge=60, le=1440, description="How long a repeated request id is answered with the first outcome."
    )
    dead_letters_kept_days: int = Field(30, ge=1, le=3650, description="How long dead letters are kept.")
    raw_messages_kept_days: RawMessagesKeptDays = RAW_MESSAGES_KEPT_DAYS
    minute_rollups_kept_days: MinuteRollupsKeptDays = MINUTE_ROLLUPS_KEPT_DAYS
    seal_after_minutes: float = Field(
        30,
        ge=0,
        le=1440,
        description="How long commits stay findable one by one before their samples may be sealed.",
    )

    @property
    def dead_letters_kept(self) -> timedelta:
        """Return how long dead letters are kept."""
        return timedelta(days=self.dead_letters_kept_days)

    @property
    def request_ids_kept(self) -> timedelta:
        """Return how long request ids are kept."""
        return timedelta(minutes=self.request_ids_kept_minutes)

    @property
    def raw_messages_kept(self) -> timedelta:
        """Return how long raw messages are kept."""
        return timedelta(days=self.raw_messages_kept_days)

    @property
    def minute_rollups_kept(self) -> timedelta:
        """Return how long rollups of minutes are kept."""
        return timedelta(days=self.minute_rollups_kept_days)

    @property
    def seal_after(self) -> timedelta:
        """Return how long commits stay findable."""
        return timedelta(minutes=self.seal_after_minutes)
