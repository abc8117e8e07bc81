"""Storage policies: how long each tenant keeps what."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta

from meshkit.errors import FieldViolation, InvalidArgument
from telemetry_store.tenant_policies import PolicyRow, PolicyTable
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

# How long something is kept, or after what time something happens to it.
AGES = ("archive_after", "delete_after", "minute_rollups_kept", "hour_rollups_kept", "day_rollups_kept")
_ROLLUPS = AGES[2:]


@dataclass(frozen=True, slots=True)
class StoragePolicyRow(PolicyRow):
    """How long a tenant keeps what.

    Attributes:
        archive_after: samples of this age go to the archive.
        delete_after: samples and events of this age are deleted.
        minute_rollups_kept: for so long.
        hour_rollups_kept: for so long.
        day_rollups_kept: for so long.
    """

    archive_after: timedelta | None = None
    delete_after: timedelta | None = None
    minute_rollups_kept: timedelta | None = None
    hour_rollups_kept: timedelta | None = None
    day_rollups_kept: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """How long something is kept, of a tenant or as the installation is set.

    Attributes:
        archive_after: samples of this age go to the archive; None: there is none, or nothing goes there.
        delete_after: samples and events of this age are deleted; None: never.
        minute_rollups_kept: None: for ever.
        hour_rollups_kept: None: for ever.
        day_rollups_kept: None: for ever.
    """

    archive_after: timedelta | None = None
    delete_after: timedelta | None = None
    minute_rollups_kept: timedelta | None = None
    hour_rollups_kept: timedelta | None = None
    day_rollups_kept: timedelta | None = None

    @property
    def archives_first(self) -> bool:
        """Say whether samples are archived before they are deleted: then they are deleted there, not here."""
        return self.archive_after is not None and (
            self.delete_after is None or self.archive_after < self.delete_after
        )


def retention_of(row: StoragePolicyRow, installation: Retention, *, has_archive: bool) -> Retention:
    """Return how long a tenant keeps what.

    Args:
        row: its policy.
        installation: what holds where the policy says nothing.
        has_archive: there is an archive to go to.
    """
    said = {age: getattr(row, age) for age in AGES if getattr(row, age) is not None}
    retention = replace(installation, **said)
    return retention if has_archive else replace(retention, archive_after=None)


def keep_from(kept: timedelta, now: datetime) -> date:
    """Return the first UTC day of which something is kept: days go as a whole, and can be told before.

    Args:
        kept: how long.
        now: the present.
    """
    return (now.astimezone(UTC) - kept).date()


def require_sense(row: StoragePolicyRow) -> None:
    """Check that what a policy says does not contradict itself.

    What it leaves to the installation contradicts nothing: of two ages the smaller one is reached first.

    Raises:
        InvalidArgument: INVALID_FIELD, naming each field.
    """
    violations = list(_violations(row))
    if violations:
        raise InvalidArgument(
            "; ".join(f"{each.field}: {each.description}" for each in violations),
            reason=ErrorReason.ERROR_REASON_INVALID_FIELD,
            violations=violations,
        )


def _violations(row: StoragePolicyRow) -> Iterator[FieldViolation]:
    archive_after, delete_after = row.archive_after, row.delete_after
    if archive_after is not None and delete_after is not None and delete_after <= archive_after:
        yield FieldViolation(
            "storage_policy.delete_after",
            "must be longer than archive_after, or nothing is ever archived;"
            " leave archive_after out to delete sooner",
        )
    finer = None
    for name in _ROLLUPS:
        kept = getattr(row, name)
        if kept is None:
            continue
        if finer is not None and kept < getattr(row, finer):
            yield FieldViolation(f"storage_policy.{name}", f"must not be shorter than {finer}")
        finer = name


STORAGE_POLICIES = PolicyTable(
    "storage_policy",
    StoragePolicyRow,
    columns=AGES,
    fields=lambda record: {age: record[age] for age in AGES},
    values=lambda row: [getattr(row, age) for age in AGES],
)
