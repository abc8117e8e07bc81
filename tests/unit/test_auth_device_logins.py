"""Who may come in by MQTT."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import pytest

from auth_svc.api_keys import ApiKey, KeySecret, StoredKey
from auth_svc.device_credentials import IssuedCertificate
from auth_svc.device_logins import MOST_DEVICES, PERMISSION, DeviceLogins, Permitted
from auth_svc.enabled_devices import EnabledDevice
from auth_svc.key_uses import KeyUses
from auth_svc.login_limits import LoginLimits
from auth_svc.opaque_tokens import OpaqueToken, Prefix
from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import (
    DomainError,
    FailedPrecondition,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    dependency_unavailable,
)
from meshkit.mqtt import Login
from meshkit.scope import Scope
from meshkit.testing.clock import ManualClock
from tests.unit.test_auth_key_exchange import NoFailures, NoUses
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_NOW = 1_800_000_000 * MICROS_PER_SECOND


def _token(tenant: str = "demo", key_id: str = "key7", *, prefix: Prefix = Prefix.API_KEY) -> OpaqueToken:
    return OpaqueToken(prefix, tenant, key_id, "5ec7e7" + "0" * 58)


class _Keys:
    def __init__(self) -> None:
        self.stored: dict[tuple[str, str], StoredKey] = {}

    def add(
        self,
        tenant: str = "demo",
        key_id: str = "key7",
        *,
        permissions: Collection[str] = (PERMISSION,),
        expire_us: int | None = None,
        scope: Scope | None = None,
    ) -> None:
        key = ApiKey(tenant, key_id, "", frozenset(permissions), "ada", _NOW, expire_us, scope=scope)
        secrets = (KeySecret(_token(tenant, key_id).hash, 1),)
        self.stored[tenant, key_id] = StoredKey(key, secrets, tenant_suspended=False)

    async def find(self, tenant: str, key_id: str) -> StoredKey | None:
        return self.stored.get((tenant, key_id))

    async def find_all(self, tenant: str, key_ids: Sequence[str]) -> Mapping[str, StoredKey]:
        return {id_: self.stored[tenant, id_] for id_ in key_ids if (tenant, id_) in self.stored}


class _Certificates:
    """Where there is none but one."""

    async def find(self, tenant: str, certificate_id: str) -> IssuedCertificate | None:
        is_there = (tenant, certificate_id) == ("demo", "c7")
        return IssuedCertificate(b"x", tenant_suspended=False) if is_there else None

    async def find_all(self, tenant: str, certificate_ids: Sequence[str]) -> Mapping[str, IssuedCertificate]:
        found = {id_: await self.find(tenant, id_) for id_ in certificate_ids}
        return {id_: certificate for id_, certificate in found.items() if certificate is not None}


class _Devices:
    def __init__(self) -> None:
        self.of: dict[str, dict[str, bool]] = {
            "demo": {"pump-1": True, "off": False},
            "other": {"foreign": True},
        }
        self.parents: dict[str, str] = {}
        self.away = False
        self.asked: list[tuple[str, Sequence[str]]] = []

    async def enabled(self, tenant: str, device_ids: Sequence[str]) -> Mapping[str, EnabledDevice]:
        self.asked.append((tenant, device_ids))
        if self.away:
            raise dependency_unavailable("asset_svc")
        return {device: self._device(device) for device in device_ids if self.of.get(tenant, {}).get(device)}

    async def all_of(self, tenant: str, *, scope: Scope | None, most: int) -> Sequence[EnabledDevice]:
        if self.away:
            raise dependency_unavailable("asset_svc")
        found = [self._device(device) for device, enabled in sorted(self.of[tenant].items()) if enabled]
        return [each for each in found if scope is None or scope.holds(each.id, each.parent_id)][: most + 1]

    def _device(self, device_id: str) -> EnabledDevice:
        return EnabledDevice(
            device_id, 1, self.parents.get(device_id, ""), device_id in self.parents.values()
        )


class _Deletions:
    """Knows who has deleted devices, and how many are."""

    def __init__(self) -> None:
        self.number = 0
        self.last: dict[str, int] = {}
        self.away = False

    def delete(self, tenant: str) -> None:
        self.number += 1
        self.last[tenant] = self.number

    async def place(self) -> int:
        return self.number

    async def last_by_tenant(self, *, after: int) -> Mapping[str, int]:
        if self.away:
            raise dependency_unavailable("asset_svc")
        return {tenant: number for tenant, number in self.last.items() if number > after}


@pytest.fixture
def deletions() -> _Deletions:
    return _Deletions()


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(_NOW)


@pytest.fixture
def keys() -> _Keys:
    made = _Keys()
    made.add()
    return made


@pytest.fixture
def devices() -> _Devices:
    return _Devices()


@pytest.fixture
def logins(keys: _Keys, devices: _Devices, deletions: _Deletions, clock: ManualClock) -> DeviceLogins:
    return _logins(keys, devices, KeyUses(store=NoUses(), clock=clock), clock, deletions)


def _logins(
    keys: _Keys, devices: _Devices, uses: KeyUses, clock: ManualClock, deletions: _Deletions
) -> DeviceLogins:
    return DeviceLogins(
        keys=keys,
        certificates=_Certificates(),
        devices=devices,
        deletions=deletions,
        uses=uses,
        limits=LoginLimits(store=NoFailures(), clock=clock),
        clock=clock,
    )


async def _refusal(logins: DeviceLogins, user: str, password: str) -> DomainError:
    with pytest.raises(DomainError) as caught:
        await logins.log_in(user, password, address="203.0.113.7")
    return caught.value


async def test_a_device_publishes_for_itself_alone(logins: DeviceLogins) -> None:
    permitted = await logins.log_in("pump-1", _token().text, address="203.0.113.7")
    assert permitted == Permitted(Login("demo", "key7", "pump-1"), ["pump-1"], None)


async def test_the_key_s_own_id_publishes_for_all_enabled_devices(
    logins: DeviceLogins, devices: _Devices
) -> None:
    devices.of["demo"]["pump-2"] = True
    permitted = await logins.log_in("key7", _token().text, address="203.0.113.7")
    assert permitted == Permitted(Login("demo", "key7", ""), ["pump-1", "pump-2"], None)


async def test_a_log_in_that_is_let_in_is_a_use_of_the_key(
    keys: _Keys, devices: _Devices, deletions: _Deletions, clock: ManualClock
) -> None:
    written: list[Mapping[str, int]] = []

    class Store:
        async def write_uses(self, tenant: str, uses: Mapping[str, int]) -> None:
            written.append(uses)

    uses = KeyUses(store=Store(), clock=clock)
    logins = _logins(keys, devices, uses, clock, deletions)
    await _refusal(logins, "off", _token().text)
    await uses.write()
    assert written == []
    for user in ("pump-1", "key7"):
        clock.advance(60)
        await logins.log_in(user, _token().text, address="203.0.113.7")
        await uses.write()
    assert [list(each) for each in written] == [["key7"], ["key7"]]


async def test_a_key_s_id_does_for_no_more_than_five_thousand_devices(
    logins: DeviceLogins, devices: _Devices
) -> None:
    devices.of["demo"] = {f"d{number:05}": True for number in range(MOST_DEVICES)}
    assert len((await logins.log_in("key7", _token().text, address="203.0.113.7")).device_ids) == MOST_DEVICES
    devices.of["demo"]["one-more"] = True
    error = await _refusal(logins, "key7", _token().text)
    assert isinstance(error, FailedPrecondition)
    assert "5,000" in error.message
    # Each by itself still comes in.
    assert (await logins.log_in("one-more", _token().text, address="203.0.113.7")).device_ids == ["one-more"]


@pytest.mark.parametrize(
    "password",
    [
        "",
        "secret",
        _token(tenant="other").text,
        _token(key_id="unheard").text,
        _token(prefix=Prefix.REFRESH).text,
        _token().text[:-1] + "1",
        _token().text + " ",
        "\0",
    ],
)
async def test_every_bad_key_is_refused_in_the_same_words(logins: DeviceLogins, password: str) -> None:
    error = await _refusal(logins, "pump-1", password)
    assert isinstance(error, Unauthenticated)
    assert error.reason == ErrorReason.ERROR_REASON_API_KEY_INVALID
    assert str(error) == str(await _refusal(logins, "key7", "tmk"))


async def test_a_revoked_key_is_refused(logins: DeviceLogins, keys: _Keys) -> None:
    keys.stored.clear()
    assert isinstance(await _refusal(logins, "pump-1", _token().text), Unauthenticated)


async def test_a_key_ends_when_it_expires(logins: DeviceLogins, keys: _Keys, clock: ManualClock) -> None:
    expire_us = _NOW + 10 * MICROS_PER_SECOND
    keys.add(expire_us=expire_us)
    clock.advance(9.9)
    assert (await logins.log_in("pump-1", _token().text, address="203.0.113.7")).expire_us == expire_us
    clock.advance(0.1)
    assert isinstance(await _refusal(logins, "pump-1", _token().text), Unauthenticated)


async def test_a_key_needs_the_permission(logins: DeviceLogins, keys: _Keys, devices: _Devices) -> None:
    keys.add(permissions=["telemetry:read", "device:write"])
    for user in ("pump-1", "key7"):
        error = await _refusal(logins, user, _token().text)
        assert isinstance(error, PermissionDenied)
        assert error.metadata == {"permission": PERMISSION}
    assert devices.asked == []


@pytest.mark.parametrize("user", ["foreign", "off", "unheard", "", "key8", "PUMP-1", "pump-1\0", "*", ">"])
async def test_other_devices_are_refused_in_the_same_words(logins: DeviceLogins, user: str) -> None:
    error = await _refusal(logins, user, _token().text)
    assert isinstance(error, FailedPrecondition)
    assert error.reason == ErrorReason.ERROR_REASON_DEVICE_UNKNOWN
    assert str(error) == str(await _refusal(logins, "absent", _token().text))


async def test_while_nobody_knows_the_devices_nobody_comes_in(
    logins: DeviceLogins, devices: _Devices
) -> None:
    devices.away = True
    for user in ("pump-1", "key7"):
        assert isinstance(await _refusal(logins, user, _token().text), Unavailable)


async def test_who_would_be_refused_today(logins: DeviceLogins, keys: _Keys, devices: _Devices) -> None:
    keys.add("other", "key9")
    good = [
        Login("demo", "key7", "pump-1"),
        Login("demo", "key7", ""),
        Login("other", "key9", "foreign"),
        Login("demo", "c7", "pump-1", by_certificate=True),
    ]
    bad = [
        Login("demo", "revoked", "pump-1"),
        Login("demo", "revoked", ""),
        Login("other", "key7", "foreign"),  # Another tenant's key of the same id.
        Login("demo", "key7", "pump-1", by_certificate=True),  # A key's id is no certificate's, …
        Login("demo", "c7", "pump-1"),  # … nor the other way round.
        Login("demo", "key7", "off"),
        Login("demo", "key7", "deleted"),
        Login("demo", "key7", "foreign"),  # It moved.
    ]
    mixed = [login for pair in zip(bad, [*good, *good], strict=True) for login in pair]
    assert await logins.outdated(mixed) == bad
    assert await logins.outdated([]) == []
    # One question for each tenant.
    assert [tenant for tenant, _ in devices.asked] == ["demo", "other"]


async def test_a_log_in_for_all_devices_is_outdated_once_its_tenant_deletes_one(
    logins: DeviceLogins, keys: _Keys, deletions: _Deletions
) -> None:
    keys.add("other", "key9")
    deletions.delete("demo")
    login = (await logins.log_in("key7", _token().text, address="")).login
    others = (await logins.log_in("key9", _token("other", "key9").text, address="")).login
    single = (await logins.log_in("pump-1", _token().text, address="")).login
    assert await logins.outdated([login, others, single]) == []
    deletions.delete("demo")
    assert await logins.outdated([login, others, single]) == [login]
    again = (await logins.log_in("key7", _token().text, address="")).login
    assert await logins.outdated([others, again]) == []


async def test_a_device_that_is_deleted_while_a_log_in_reads_them_makes_it_outdated(
    logins: DeviceLogins, devices: _Devices, deletions: _Deletions, monkeypatch: pytest.MonkeyPatch
) -> None:
    all_of = devices.all_of

    async def deleted_meanwhile(*arguments: Any, **named: Any) -> Sequence[EnabledDevice]:
        found = await all_of(*arguments, **named)
        deletions.delete("demo")
        return found

    monkeypatch.setattr(devices, "all_of", deleted_meanwhile)
    login = (await logins.log_in("key7", _token().text, address="")).login
    assert await logins.outdated([login]) == [login]


async def test_while_nobody_knows_the_devices_only_credentials_make_outdated(
    logins: DeviceLogins, devices: _Devices, deletions: _Deletions
) -> None:
    single, whole = Login("demo", "key7", "deleted"), Login("demo", "key7", "")
    revoked = [Login("demo", "revoked", "pump-1"), Login("demo", "revoked", "")]
    deletions.delete("demo")
    for each in (devices, deletions):
        devices.away = deletions.away = False
        each.away = True
        assert await logins.outdated([single, whole, *revoked]) == revoked
        assert await logins.ended([single, whole, *revoked]) == revoked


async def test_a_bound_key_logs_in_its_devices_only(
    logins: DeviceLogins, keys: _Keys, devices: _Devices
) -> None:
    devices.of["demo"] |= {"hub": True, "beacon": True, "lone": True, "child": True}
    devices.parents = {"beacon": "hub", "child": "lone"}
    keys.add(scope=Scope(frozenset({"pump-1", "lone"}), frozenset({"hub"})))
    for own in ("pump-1", "hub", "beacon"):
        assert (await logins.log_in(own, _token().text, address="")).device_ids == [own]
    # What the gateway publishes would be its child's, to which the key is not bound.
    for other in ("child", "lone", "foreign", "absent"):
        error = await _refusal(logins, other, _token().text)
        assert str(error) == str(await _refusal(logins, "unheard", _token().text))
    assert (await logins.log_in("key7", _token().text, address="")).device_ids == ["beacon", "hub", "pump-1"]


async def test_a_device_that_left_a_bound_keys_gateway_is_outdated(
    logins: DeviceLogins, keys: _Keys, devices: _Devices
) -> None:
    devices.of["demo"] |= {"hub": True, "beacon": True}
    devices.parents = {"beacon": "hub"}
    keys.add(scope=Scope(gateway_ids=frozenset({"hub"})))
    login = Login("demo", "key7", "beacon")
    assert await logins.outdated([login]) == []
    devices.parents = {}
    assert await logins.outdated([login]) == [login]
