"""For how long tokens count, and the keys that they are verified by."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

import pytest

from meshkit.clock import MICROS_PER_SECOND
from meshkit.errors import DomainError, Unauthenticated, dependency_unavailable
from meshkit.identity import PrincipalKind, TokenVerifier
from meshkit.revocations import Revocation, Revocations
from meshkit.testing.auth import TokenMint
from meshkit.testing.clock import ManualClock
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_MINUTE_S = 60


class _Keys:
    """auth_svc's key set, which may be away.

    Attributes:
        mints: whose keys are published.
        is_away: whether nobody answers.
        asked: how often it was.
    """

    def __init__(self, *mints: TokenMint) -> None:
        self.mints = list(mints)
        self.is_away = False
        self.asked = 0

    async def fetch(self) -> Sequence[Mapping[str, str]]:
        self.asked += 1
        if self.is_away:
            raise dependency_unavailable("auth_svc")
        return [mint.jwk() for mint in self.mints]


async def _nothing_revoked(_: int) -> Sequence[Revocation]:
    return []


class _Site:
    """A verifier, its clock, and two keys of which one is published."""

    def __init__(self) -> None:
        self.clock = ManualClock(int(time.time()) * MICROS_PER_SECOND)
        self.old, self.new = TokenMint(kid="old"), TokenMint(kid="new")
        self.keys = _Keys(self.old)
        self.revocations = Revocations(fetch=_nothing_revoked, clock=self.clock)
        self.verifier = TokenVerifier(
            fetch_keys=self.keys.fetch, revocations=self.revocations, clock=self.clock
        )

    def ends_in(self, seconds: float) -> int:
        """Return a time as claims have it."""
        return self.clock.now_us() // MICROS_PER_SECOND + int(seconds)

    def token(self, mint: TokenMint, *, lasts_s: int = 900, **claims: Any) -> str:
        return mint.token(tenant="demo", permissions=[], exp=self.ends_in(lasts_s), **claims)


@pytest.fixture
async def site() -> _Site:
    made = _Site()
    await made.revocations.poll()
    return made


async def _reason(site: _Site, token: str) -> ErrorReason.ValueType:
    with pytest.raises(DomainError) as refused:
        await site.verifier.verify(token)
    return refused.value.reason


_INVALID = ErrorReason.ERROR_REASON_TOKEN_INVALID


@pytest.mark.parametrize("kind", [PrincipalKind.USER, PrincipalKind.FEDERATED])
async def test_who_has_shown_a_token_ends_with_it_and_not_with_the_session(
    site: _Site, kind: PrincipalKind
) -> None:
    claims: dict[str, Any] = {"kind": kind, "cred_exp": site.ends_in(7 * 24 * 3600)}
    principal = await site.verifier.verify(site.token(site.old, **claims))
    site.clock.advance(899)
    site.verifier.require_live(principal)
    site.clock.advance(1)
    with pytest.raises(Unauthenticated) as ended:
        site.verifier.require_live(principal)
    assert ended.value.reason == _INVALID


@pytest.mark.parametrize("kind", [PrincipalKind.API_KEY, PrincipalKind.DEVICE])
async def test_who_has_shown_a_key_or_certificate_ends_with_it_and_not_with_the_token_for_it(
    site: _Site, kind: PrincipalKind
) -> None:
    principal = await site.verifier.verify(
        site.token(site.old, kind=kind, lasts_s=_MINUTE_S, cred_exp=site.ends_in(3600))
    )
    site.clock.advance(3599)
    site.verifier.require_live(principal)
    site.clock.advance(1)
    with pytest.raises(Unauthenticated) as ended:
        site.verifier.require_live(principal)
    assert ended.value.reason == _INVALID


async def test_a_token_that_was_good_is_refused_once_it_has_ended(site: _Site) -> None:
    # A key's or certificate's token ends before what was shown for it.
    for claims in ({}, {"kind": PrincipalKind.API_KEY, "cred_exp": site.ends_in(3600)}):
        token = site.token(site.old, lasts_s=2, **claims)
        await site.verifier.verify(token)
        site.clock.advance(2)
        assert await _reason(site, token) == _INVALID


async def test_a_key_that_is_no_longer_published_counts_for_a_minute_at_most(site: _Site) -> None:
    shown_before = site.token(site.old)
    await site.verifier.verify(shown_before)
    site.keys.mints = [site.new]
    site.clock.advance(_MINUTE_S)
    assert await _reason(site, shown_before) == _INVALID
    assert await _reason(site, site.token(site.old)) == _INVALID
    await site.verifier.verify(site.token(site.new))


async def test_keys_are_not_asked_for_more_often_than_that(site: _Site) -> None:
    for _ in range(_MINUTE_S):
        await site.verifier.verify(site.token(site.old))
        site.clock.advance(0.5)
    assert site.keys.asked == 1


async def test_while_auth_svc_is_away_known_keys_hold(site: _Site) -> None:
    await site.verifier.verify(site.token(site.old))
    site.keys.is_away = True
    for _ in range(3):
        site.clock.advance(_MINUTE_S)
        await site.verifier.verify(site.token(site.old))
        await site.verifier.verify(site.token(site.old))
    # Nobody waits for it again and again.
    assert site.keys.asked == 1 + 3
    assert await _reason(site, site.token(site.new)) == ErrorReason.ERROR_REASON_DEPENDENCY_UNAVAILABLE
    site.keys.is_away, site.keys.mints = False, [site.new]
    await site.verifier.verify(site.token(site.new))
    assert await _reason(site, site.token(site.old)) == _INVALID
