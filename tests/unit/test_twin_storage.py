"""What a policy does, and whose usage it is: the rules."""

from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from telemetry_store.storage_policies import Retention
from telemetry_store.storage_usage import DayUsage, DeviceUsage, Tier
from twin_svc.storage import by_type, effects

NOW = datetime(2026, 7, 10, 15, tzinfo=UTC)
DAY = timedelta(days=1)


def days(tier: Tier, *ages: int) -> list[DayUsage]:
    return [DayUsage(tier, (NOW - age * DAY).date(), 1, 10, 100) for age in ages]


def told(usage: list[DayUsage], retention: Retention) -> dict[Tier, tuple[int, int]]:
    return {each.tier: (each.deleted.rows, each.archived.rows) for each in effects(usage, retention, NOW)}


def test_samples_are_archived_and_then_deleted_wherever_they_are() -> None:
    usage = days(Tier.SEALED, 10, 30, 31, 60, 61) + days(Tier.ARCHIVED, 60, 61) + days(Tier.HOT, 100)
    assert told(usage, Retention(archive_after=30 * DAY, delete_after=60 * DAY)) == {
        Tier.SEALED: (1, 2),
        Tier.ARCHIVED: (1, 0),
    }
    assert told(usage, Retention(archive_after=30 * DAY)) == {Tier.SEALED: (0, 3)}


def test_what_is_deleted_first_is_not_archived() -> None:
    usage = days(Tier.SEALED, 10, 31, 61)
    assert told(usage, Retention(archive_after=60 * DAY, delete_after=30 * DAY)) == {Tier.SEALED: (2, 0)}


def test_each_rollup_has_its_own_age_and_other_messages_the_ingest_policys() -> None:
    tiers = (Tier.MINUTE_ROLLUPS, Tier.HOUR_ROLLUPS, Tier.DAY_ROLLUPS, Tier.RAW_MESSAGES, Tier.DEAD_LETTERS)
    usage = [each for tier in tiers for each in days(tier, 8, 80, 800)]
    assert told(usage, Retention(None, DAY, 7 * DAY, 70 * DAY, 700 * DAY)) == {
        Tier.MINUTE_ROLLUPS: (3, 0),
        Tier.HOUR_ROLLUPS: (2, 0),
        Tier.DAY_ROLLUPS: (1, 0),
    }


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 100), st.integers(0, 100)), max_size=20))
def test_types_hold_all_that_their_devices_hold(sizes: list[tuple[str, int, int]]) -> None:
    devices = [DeviceUsage(f"{kind}-{place}", *amounts) for place, (kind, *amounts) in enumerate(sizes)]
    types = {device.device_id: device.device_id[0] for device in devices if device.device_id[0] != "c"}
    found = by_type([*devices, DeviceUsage("", 1, 2)], types)
    assert sum(each.devices for each in found) == len(devices)
    assert sum(each.samples for each in found) == sum(device.samples for device in devices) + 1
    assert {each.device_type_id for each in found} == {"", *types.values()}
    assert [each.size for each in found] == sorted((each.size for each in found), reverse=True)
