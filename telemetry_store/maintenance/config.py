"""Settings of the maintenance worker."""

from datetime import timedelta

from pydantic import Field

from meshkit.config import (
    ARCHIVE_AFTER_DAYS,
    ARCHIVE_URL,
    LATE_WINDOW_DAYS,
    MINUTE_ROLLUPS_KEPT_DAYS,
    RAW_MESSAGES_KEPT_DAYS,
    ArchiveAfterDays,
    ArchiveUrl,
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
    archive_url: ArchiveUrl = ARCHIVE_URL
    archive_after_days: ArchiveAfterDays = ARCHIVE_AFTER_DAYS
    archive_grace_hours: int = Field(
        24,
        ge=1,
        le=8760,
        description="How long archived objects stay that are no longer named: longer than any answer takes.",
    )
    minute_rollups_kept_days: MinuteRollupsKeptDays = MINUTE_ROLLUPS_KEPT_DAYS
    seal_after_minutes: float = Field(
        30,
        ge=0,
        le=1440,
        description="How long commits stay findable one by one before their samples may be sealed.",
    )

    @property
    def archive_after(self) -> timedelta:
        """Return how long samples stay sealed before they are archived."""
        return timedelta(days=self.archive_after_days)

    @property
    def archive_grace(self) -> timedelta:
        """Return how long archived objects stay that are no longer named."""
        return timedelta(hours=self.archive_grace_hours)

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
