"""What becomes of a refresh token: every state that it can be in."""

from dataclasses import replace

import pytest

from auth_svc.roles import Role, permissions_of
from auth_svc.sessions import (
    IDLE_LIFE_S,
    LONGEST_LIFE_S,
    RETRY_GRACE_S,
    Postpone,
    Presented,
    Refuse,
    Replay,
    Revoke,
    Rotate,
    judge,
)
from meshkit.clock import MICROS_PER_SECOND

_NOW = 1_800_000_000 * MICROS_PER_SECOND
_NEXT = b"n" * 32
_UNUSED = Presented(
    username="ada",
    role=Role.VIEWER,
    permissions=permissions_of(Role.VIEWER),
    revoked=False,
    tenant_suspended=False,
    expire_us=_NOW + 1,
    end_us=_NOW + LONGEST_LIFE_S * MICROS_PER_SECOND,
    generation=3,
    newest_generation=3,
    use_us=None,
    replayed=False,
)
_JUST_USED = replace(_UNUSED, newest_generation=4, use_us=_NOW - MICROS_PER_SECOND)


def test_an_unused_token_is_rotated_and_extends_the_session() -> None:
    verdict = judge(_UNUSED, now_us=_NOW, next_hash=_NEXT)
    assert verdict == Rotate(_NEXT, use_us=_NOW, expire_us=_NOW + IDLE_LIFE_S * MICROS_PER_SECOND)


def test_a_session_is_never_extended_beyond_its_end() -> None:
    near_end = replace(_UNUSED, end_us=_NOW + MICROS_PER_SECOND)
    verdict = judge(near_end, now_us=_NOW, next_hash=_NEXT)
    assert isinstance(verdict, Rotate)
    assert verdict.expire_us == near_end.end_us


@pytest.mark.parametrize("used_before_s", [0, 1, RETRY_GRACE_S])
def test_the_last_used_token_is_answered_again_in_its_grace(used_before_s: int) -> None:
    used = replace(_JUST_USED, use_us=_NOW - used_before_s * MICROS_PER_SECOND)
    assert judge(used, now_us=_NOW, next_hash=_NEXT) == Replay(replay_us=_NOW)


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(
            replace(_JUST_USED, use_us=_NOW - RETRY_GRACE_S * MICROS_PER_SECOND - 1), id="after the grace"
        ),
        pytest.param(replace(_JUST_USED, replayed=True), id="retried once already"),
        pytest.param(replace(_JUST_USED, newest_generation=5), id="its successor was used"),
    ],
)
def test_a_token_used_again_ends_the_session(copied: Presented) -> None:
    assert judge(copied, now_us=_NOW, next_hash=_NEXT) == Revoke(revoke_us=_NOW)


@pytest.mark.parametrize(
    "useless",
    [
        pytest.param(None, id="unknown"),
        pytest.param(replace(_UNUSED, revoked=True), id="revoked"),
        pytest.param(replace(_JUST_USED, revoked=True), id="revoked, in its grace"),
        pytest.param(replace(_UNUSED, expire_us=_NOW), id="expired"),
    ],
)
def test_a_token_of_no_live_session_changes_nothing(useless: Presented | None) -> None:
    assert judge(useless, now_us=_NOW, next_hash=_NEXT) == Refuse()


def test_a_good_token_of_a_suspended_tenant_stays_good() -> None:
    for good in (_UNUSED, _JUST_USED):
        assert judge(replace(good, tenant_suspended=True), now_us=_NOW, next_hash=_NEXT) == Postpone()


def test_a_copied_token_of_a_suspended_tenant_ends_the_session_all_the_same() -> None:
    copied = replace(_JUST_USED, replayed=True, tenant_suspended=True)
    assert judge(copied, now_us=_NOW, next_hash=_NEXT) == Revoke(revoke_us=_NOW)
