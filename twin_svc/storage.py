"""The rules of telling what is stored: whose it is, and what a policy would do with it."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, datetime, timedelta

from telemetry_store.storage_policies import Retention, keep_from
from telemetry_store.storage_usage import DayUsage, DeviceUsage, Tier


@dataclass(slots=True)
class Amount:
    """Rows, the samples in them, and the bytes that they take."""

    rows: int = 0
    samples: int = 0
    size: int = 0

    def add(self, usage: DayUsage) -> None:
        """Take in what one day holds."""
        self.rows += usage.rows
        self.samples += usage.samples
        self.size += usage.size


@dataclass(frozen=True, slots=True)
class Effect:
    """What a policy does at once with what a tier holds."""

    tier: Tier
    deleted: Amount
    archived: Amount

    @property
    def saved(self) -> int:
        """Return how many bytes are there no longer: what is in the archive already is not PostgreSQL's."""
        return self.deleted.size + self.archived.size


@dataclass(slots=True)
class TypeUsage:
    """What the devices of a type take; "": of no type that is known."""

    device_type_id: str
    devices: int = 0
    samples: int = 0
    size: int = 0


def effects(days: Sequence[DayUsage], retention: Retention, now: datetime) -> list[Effect]:
    """Return what a policy does, by tier; of tiers that it leaves alone nothing.

    Args:
        days: what there is.
        retention: the policy, with the installation's where it says nothing.
        now: the present.
    """
    by_tier: dict[Tier, Effect] = {}
    for usage in days:
        effect = by_tier.setdefault(usage.tier, Effect(usage.tier, Amount(), Amount()))
        if _is_before(usage.day, _kept(usage.tier, retention), now):
            effect.deleted.add(usage)
        elif (
            usage.tier is Tier.SEALED
            and retention.archives_first
            and _is_before(usage.day, retention.archive_after, now)
        ):
            effect.archived.add(usage)
    return [each for each in by_tier.values() if each.deleted.rows or each.archived.rows]


def _kept(tier: Tier, retention: Retention) -> timedelta | None:
    match tier:
        case Tier.SEALED | Tier.ARCHIVED | Tier.EVENTS:
            return retention.delete_after
        case Tier.MINUTE_ROLLUPS:
            return retention.minute_rollups_kept
        case Tier.HOUR_ROLLUPS:
            return retention.hour_rollups_kept
        case Tier.DAY_ROLLUPS:
            return retention.day_rollups_kept
        case Tier.HOT | Tier.RAW_MESSAGES | Tier.DEAD_LETTERS:
            # Sealed first, and the ingest policy's.
            return None


def _is_before(day: date, kept: timedelta | None, now: datetime) -> bool:
    return kept is not None and day < keep_from(kept, now)


def by_type(devices: Sequence[DeviceUsage], types: Mapping[str, str]) -> list[TypeUsage]:
    """Return what the devices of each type take, the largest first.

    Args:
        devices: what each takes; "": some others, which do not count as one.
        types: of those that exist.
    """
    found: defaultdict[str, TypeUsage] = defaultdict(lambda: TypeUsage(""))
    for device in devices:
        type_id = types.get(device.device_id, "")
        usage = found[type_id]
        usage.device_type_id = type_id
        usage.devices += bool(device.device_id)
        usage.samples += device.samples
        usage.size += device.size
    return sorted(found.values(), key=lambda usage: (-usage.size, usage.device_type_id))
