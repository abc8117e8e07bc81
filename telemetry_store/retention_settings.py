"""Settings of how long samples stay where: maintenance goes by them, ingest_svc and twin_svc tell of them."""

from datetime import timedelta

from meshkit.config import (
    ARCHIVE_AFTER_DAYS,
    ARCHIVE_URL,
    DELETE_AFTER_DAYS,
    MINUTE_ROLLUPS_KEPT_DAYS,
    ArchiveAfterDays,
    ArchiveUrl,
    DeleteAfterDays,
    MinuteRollupsKeptDays,
    ServiceSettings,
)
from telemetry_store.storage_policies import Retention, StoragePolicyRow, retention_of


class RetentionSettings(ServiceSettings):
    """What holds for tenants that say nothing."""

    archive_url: ArchiveUrl = ARCHIVE_URL
    archive_after_days: ArchiveAfterDays = ARCHIVE_AFTER_DAYS
    delete_after_days: DeleteAfterDays = DELETE_AFTER_DAYS
    minute_rollups_kept_days: MinuteRollupsKeptDays = MINUTE_ROLLUPS_KEPT_DAYS

    @property
    def archive_after(self) -> timedelta:
        """Return how long samples stay sealed before they are archived."""
        return timedelta(days=self.archive_after_days)

    @property
    def minute_rollups_kept(self) -> timedelta:
        """Return how long rollups of minutes are kept."""
        return timedelta(days=self.minute_rollups_kept_days)

    @property
    def retention(self) -> Retention:
        """Return how long tenants keep what that say nothing."""
        return Retention(
            archive_after=self.archive_after if self.archive_url else None,
            delete_after=None if self.delete_after_days is None else timedelta(days=self.delete_after_days),
            minute_rollups_kept=self.minute_rollups_kept,
        )

    def effective(self, policy: StoragePolicyRow) -> Retention:
        """Return how long a tenant with this policy keeps what."""
        return retention_of(policy, self.retention, has_archive=bool(self.archive_url))
