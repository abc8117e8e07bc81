"""How a stream ends with its credential, and how another one keeps it open."""

import asyncio

import pytest

from meshkit import open_calls
from meshkit.errors import DomainError, Unauthenticated
from meshkit.identity import Principal, PrincipalKind
from meshkit.open_calls import OpenCall
from twinmesh.type.v1.error_reason_pb2 import ErrorReason

_ADA = Principal("demo", "ada", PrincipalKind.USER, frozenset(), credential_id="s1")
_REVOKED = Unauthenticated("revoked", reason=ErrorReason.ERROR_REASON_TOKEN_REVOKED)


class _Site:
    """A call, what its handler was told, and with what it was cut off."""

    def __init__(self) -> None:
        self.told: list[DomainError] = []
        self.cut_off: asyncio.Queue[DomainError] = asyncio.Queue()
        self.call = OpenCall(_ADA, address="", cut_off=self.cut_off.put_nowait, renewed=lambda _: None)


@pytest.fixture
async def site() -> _Site:
    return _Site()


async def test_without_last_words_it_is_cut_off_at_once_and_once(site: _Site) -> None:
    site.call.end(_REVOKED)
    site.call.end(_REVOKED)
    site.call.cut_off(_REVOKED)
    assert [site.cut_off.get_nowait()] == [_REVOKED]
    assert site.cut_off.empty()


async def test_a_handler_that_has_said_its_last_words_is_not_cut_off(
    site: _Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(open_calls, "_LAST_WORDS_S", 0.0)
    site.call.on_end(site.told.append)
    site.call.end(_REVOKED)
    assert (site.told, site.cut_off.empty()) == ([_REVOKED], True)
    site.call.close()
    later = _Site()
    later.call.on_end(later.told.append)
    later.call.end(_REVOKED)
    # The one that was told later, and is still open, is cut off; what was due before it has happened.
    assert await later.cut_off.get() is _REVOKED
    assert site.cut_off.empty()


async def test_another_credential_of_the_same_principal_takes_its_place(site: _Site) -> None:
    later = Principal("demo", "ada", PrincipalKind.USER, frozenset(), credential_id="s2")
    site.call.renew(later)
    assert site.call.principal is later
    for foreign in (
        Principal("other", "ada", PrincipalKind.USER, frozenset()),
        Principal("demo", "bob", PrincipalKind.USER, frozenset()),
        Principal("demo", "ada", PrincipalKind.API_KEY, frozenset()),
    ):
        with pytest.raises(Unauthenticated) as refused:
            site.call.renew(foreign)
        assert refused.value.reason == ErrorReason.ERROR_REASON_TOKEN_INVALID
    assert site.call.principal is later


async def test_once_it_was_revoked_it_is_too_late_for_another_credential(site: _Site) -> None:
    site.call.on_end(site.told.append)
    site.call.end(_REVOKED)
    with pytest.raises(Unauthenticated) as refused:
        site.call.renew(_ADA)
    assert refused.value is _REVOKED
    site.call.close()
