"""What a process knows of revocations, and what it refuses because of them."""

from collections.abc import Sequence

import pytest

from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import Unavailable
from meshkit.identity import Principal, PrincipalKind
from meshkit.revocations import KEPT_S, Revocation, RevocationKind, Revocations
from meshkit.testing.clock import ManualClock

_NOW = 1_800_000_000 * MICROS_PER_SECOND


class _List:
    """The list of auth_svc, which may be away."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.revocations: list[Revocation] = []
        self.asked_after: list[int] = []
        self.is_away = False

    def add(self, kind: RevocationKind, id_: str, *, tenant: str = "demo") -> None:
        now_us = self._clock.now_us()
        until_us = now_us + KEPT_S * MICROS_PER_SECOND
        number = len(self.revocations) + 1
        self.revocations.append(Revocation(number, tenant, kind, id_, now_us, until_us))

    async def fetch(self, after: int) -> Sequence[Revocation]:
        if self.is_away:
            raise ConnectionError
        self.asked_after.append(after)
        return [each for each in self.revocations if each.number > after]


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock(_NOW)


@pytest.fixture
def listed(clock: ManualClock) -> _List:
    return _List(clock)


@pytest.fixture
def revocations(listed: _List, clock: ManualClock) -> Revocations:
    return Revocations(fetch=listed.fetch, clock=clock)


def ada(
    *,
    tenant: str = "demo",
    session: str = "s1",
    issue_us: int = _NOW,
    kind: PrincipalKind = PrincipalKind.USER,
) -> Principal:
    return Principal(tenant, "ada", kind, frozenset(), credential_id=session, issue_us=issue_us)


@pytest.mark.parametrize("kind", [RevocationKind.SESSION, RevocationKind.API_KEY, RevocationKind.CERTIFICATE])
async def test_a_credential_that_was_revoked_never_counts_again(
    revocations: Revocations, listed: _List, kind: RevocationKind
) -> None:
    listed.add(kind, "s1")
    await revocations.poll()
    assert revocations.concern(ada())
    assert revocations.concern(ada(issue_us=_NOW + MICROS_PER_SECOND))
    assert not revocations.concern(ada(session="s2"))
    assert not revocations.concern(ada(tenant="other"))


async def test_of_a_user_what_was_issued_before_is_refused(revocations: Revocations, listed: _List) -> None:
    listed.add(RevocationKind.USER, "ada")
    await revocations.poll()
    assert revocations.concern(ada(issue_us=_NOW))
    assert revocations.concern(ada(issue_us=_NOW - 1, session="s2"))
    assert not revocations.concern(ada(issue_us=_NOW + 1))
    assert not revocations.concern(ada(issue_us=_NOW - 1, tenant="other"))
    # A key whose id is the user's name.
    assert not revocations.concern(ada(issue_us=_NOW - 1, kind=PrincipalKind.API_KEY))


async def test_of_a_tenant_what_was_issued_before_is_refused(revocations: Revocations, listed: _List) -> None:
    listed.add(RevocationKind.TENANT, "demo")
    await revocations.poll()
    for kind in (PrincipalKind.USER, PrincipalKind.API_KEY):
        assert revocations.concern(ada(issue_us=_NOW, kind=kind))
        assert not revocations.concern(ada(issue_us=_NOW + 1, kind=kind))
        assert not revocations.concern(ada(issue_us=_NOW, kind=kind, tenant="other"))


async def test_a_user_who_is_revoked_again_is_refused_again(
    revocations: Revocations, listed: _List, clock: ManualClock
) -> None:
    listed.add(RevocationKind.USER, "ada")
    clock.advance(10)
    listed.add(RevocationKind.USER, "ada")
    await revocations.poll()
    assert revocations.concern(ada(issue_us=_NOW + 5 * MICROS_PER_SECOND))


async def test_followers_are_told_once_of_what_is_new(revocations: Revocations, listed: _List) -> None:
    told: list[list[str]] = []
    revocations.follow(lambda new: told.append([each.id for each in new]))
    listed.add(RevocationKind.SESSION, "s1")
    await revocations.poll()
    listed.add(RevocationKind.SESSION, "s2")
    listed.add(RevocationKind.USER, "ada")
    await revocations.poll()
    await revocations.poll()
    assert told == [["s1"], ["s2", "ada"]]
    assert listed.asked_after == [0, 1, 3]


async def test_what_is_known_holds_while_auth_svc_is_away(revocations: Revocations, listed: _List) -> None:
    told: list[Sequence[Revocation]] = []
    revocations.follow(told.append)
    listed.add(RevocationKind.SESSION, "s1")
    await revocations.poll()
    listed.is_away = True
    with pytest.raises(ConnectionError):
        await revocations.poll()
    assert revocations.concern(ada())
    listed.is_away = False
    listed.add(RevocationKind.SESSION, "s2")
    await revocations.poll()
    # It was read from its beginning: its database may have been another one meanwhile.
    assert listed.asked_after[-1] == 0
    assert [[each.id for each in new] for new in told] == [["s1"], ["s2"]]


async def test_after_a_long_absence_nothing_counts_that_was_issued_before(
    revocations: Revocations, listed: _List, clock: ManualClock
) -> None:
    told: list[Sequence[Revocation]] = []
    revocations.follow(told.append)
    await revocations.poll()
    clock.advance(KEPT_S)
    await revocations.poll()
    assert not revocations.concern(ada(issue_us=_NOW))
    clock.advance(KEPT_S + 1)
    await revocations.poll()
    assert revocations.concern(ada(issue_us=clock.now_us()))
    assert not revocations.concern(ada(issue_us=clock.now_us() + 1))
    assert told == [[]]


async def test_what_is_over_is_forgotten(revocations: Revocations, listed: _List, clock: ManualClock) -> None:
    listed.add(RevocationKind.SESSION, "s1")
    await revocations.poll()
    clock.advance(KEPT_S)
    await revocations.poll()
    assert not revocations.concern(ada())


async def test_a_set_that_is_full_refuses_all_that_is_as_old_as_what_it_drops(
    listed: _List, clock: ManualClock
) -> None:
    revocations = Revocations(fetch=listed.fetch, clock=clock, most=2)
    for session in ("s1", "s2", "s3"):
        listed.add(RevocationKind.SESSION, session)
        clock.advance(1)
    await revocations.poll()
    assert revocations.concern(ada(session="s1", issue_us=_NOW))
    assert revocations.concern(ada(session="another", issue_us=_NOW))
    assert not revocations.concern(ada(session="another", issue_us=_NOW + 1))
    for session in ("s2", "s3"):
        assert revocations.concern(ada(session=session, issue_us=_NOW + 1))


async def test_nobody_is_let_in_before_the_list_was_read(
    revocations: Revocations, listed: _List, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("meshkit.revocations._KNOWN_WITHIN_S", 0.01)
    listed.is_away = True
    with pytest.raises(ConnectionError):
        await revocations.poll()
    with pytest.raises(Unavailable):
        await revocations.require_known()
    listed.is_away = False
    async with revocations.polling():
        await revocations.require_known()
