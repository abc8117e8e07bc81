"""Settings of the maintenance worker."""

from datetime import timedelta

from pydantic import Field

from meshkit.config import (
    DATABASE_DATA_DIR,
    DATABASE_MAX_BYTES,
    DISK_RESERVED_BYTES,
    LATE_WINDOW_DAYS,
    RAW_MESSAGES_KEPT_DAYS,
    SEAL_AFTER_MINUTES,
    DatabaseDataDir,
    DatabaseMaxBytes,
    DiskReservedBytes,
    LateWindowDays,
    RawMessagesKeptDays,
    SealAfterMinutes,
)
from telemetry_store.retention_settings import RetentionSettings


class MaintenanceSettings(RetentionSettings):
    """What maintenance needs beside what every service needs."""

    late_window_days: LateWindowDays = LATE_WINDOW_DAYS
    request_ids_kept_minutes: int = Field(
        60, ge=60, le=1440, description="How long a repeated request id is answered with the first outcome."
    )
    dead_letters_kept_days: int = Field(30, ge=1, le=3650, description="How long dead letters are kept.")
    raw_messages_kept_days: RawMessagesKeptDays = RAW_MESSAGES_KEPT_DAYS
    seal_after_minutes: SealAfterMinutes = SEAL_AFTER_MINUTES
    archive_grace_hours: int = Field(
        24,
        ge=1,
        le=8760,
        description="How long archived objects stay that are no longer named: longer than any answer takes.",
    )
    database_data_dir: DatabaseDataDir = DATABASE_DATA_DIR
    disk_reserved_bytes: DiskReservedBytes = DISK_RESERVED_BYTES
    database_max_bytes: DatabaseMaxBytes = DATABASE_MAX_BYTES

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
    def seal_after(self) -> timedelta:
        """Return how long commits stay findable."""
        return timedelta(minutes=self.seal_after_minutes)
