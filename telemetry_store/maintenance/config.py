"""Settings of the maintenance worker."""

from datetime import timedelta
from pathlib import Path

from pydantic import Field

from meshkit.config import (
    DATABASE_MAX_BYTES,
    DELETE_AFTER_DAYS,
    DISK_RESERVED_BYTES,
    LATE_WINDOW_DAYS,
    RAW_MESSAGES_KEPT_DAYS,
    DatabaseMaxBytes,
    DeleteAfterDays,
    DiskReservedBytes,
    LateWindowDays,
    RawMessagesKeptDays,
    ServiceSettings,
)
from telemetry_store.storage_policies import Retention


class MaintenanceSettings(ServiceSettings):
    """What maintenance needs beside what every service needs."""

    late_window_days: LateWindowDays = LATE_WINDOW_DAYS
    request_ids_kept_minutes: int = Field(
        60, ge=60, le=1440, description="How long a repeated request id is answered with the first outcome."
    )
    dead_letters_kept_days: int = Field(30, ge=1, le=3650, description="How long dead letters are kept.")
    raw_messages_kept_days: RawMessagesKeptDays = RAW_MESSAGES_KEPT_DAYS
    delete_after_days: DeleteAfterDays = DELETE_AFTER_DAYS
    database_data_dir: Path | None = Field(
        None,
        description="Folder of PostgreSQL's data, on this machine: new data are refused before its disk is"
        " full; empty: it is elsewhere, and only its operator knows.",
    )
    disk_reserved_bytes: DiskReservedBytes = DISK_RESERVED_BYTES
    database_max_bytes: DatabaseMaxBytes = DATABASE_MAX_BYTES

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
    def retention(self) -> Retention:
        """Return how long tenants keep what that say nothing."""
        return Retention(
            delete_after=None if self.delete_after_days is None else timedelta(days=self.delete_after_days)
        )
