"""The ring over a long time: what verifiers rely on must hold at every moment."""

from collections.abc import Sequence
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from auth_svc.access_tokens import ACCESS_TOKEN_LIFE_S
from auth_svc.signing_keys import JWKS_CACHE_S, SigningKey, plan, published_at, signing_key_at
from meshkit.clock import MICROS_PER_SECOND

_START = 1_800_000_000 * MICROS_PER_SECOND
_DAY_S = 24 * 60 * 60


def _step(keys: Sequence[SigningKey], *, now_us: int, life_s: int, kid: str) -> list[SigningKey]:
    planned = plan(keys, now_us=now_us, life_s=life_s)
    kept = [
        replace(key, retire_us=planned.retire_us.get(key.kid, key.retire_us))
        for key in keys
        if key.kid not in planned.expired
    ]
    if planned.activate_us is not None:
        kept.append(SigningKey(kid, {}, b"", create_us=now_us, activate_us=planned.activate_us))
    return kept


def test_the_very_first_key_signs_at_once() -> None:
    keys = _step([], now_us=_START, life_s=_DAY_S, kid="first")
    signing = signing_key_at(keys, _START)
    assert signing is not None
    assert signing.kid == "first"


def test_nothing_changes_while_the_key_is_young() -> None:
    keys = _step([], now_us=_START, life_s=_DAY_S, kid="first")
    assert not plan(keys, now_us=_START + (_DAY_S - 1) * MICROS_PER_SECOND, life_s=_DAY_S).changes


def test_a_replaced_key_is_forgotten_in_the_end() -> None:
    keys = _step([], now_us=_START, life_s=_DAY_S, kid="first")
    keys = _step(keys, now_us=_START + _DAY_S * MICROS_PER_SECOND, life_s=_DAY_S, kid="second")
    assert {key.kid for key in keys} == {"first", "second"}
    keys = _step(keys, now_us=_START + (_DAY_S + 3600) * MICROS_PER_SECOND, life_s=_DAY_S, kid="third")
    assert {key.kid for key in keys} == {"second"}


@given(
    pauses_s=st.lists(st.integers(1, 10 * _DAY_S), min_size=1, max_size=30),
    life_s=st.integers(_DAY_S, 5 * _DAY_S),
)
def test_what_verifiers_cached_always_verifies(pauses_s: list[int], life_s: int) -> None:
    """Whenever the ring is tended, and however late."""
    now_us, keys = _START, _step([], now_us=_START, life_s=life_s, kid="0")
    history = {key.kid: key for key in keys}
    for number, pause_s in enumerate(pauses_s, start=1):
        before, now_us = now_us, now_us + pause_s * MICROS_PER_SECOND
        # Nobody tended the ring meanwhile: what it held is what there was.
        for moment in {before, (before + now_us) // 2, now_us - 1}:
            signing = signing_key_at(keys, moment)
            assert signing is not None
            published = {key.kid for key in published_at(keys, moment)}
            assert signing.kid in published
            # A verifier whose cache is as old as it may be knows the key, but for the first.
            assert signing.kid == "0" or signing.create_us <= moment - 2 * JWKS_CACHE_S * MICROS_PER_SECOND
            # A token signed now is verifiable for its whole life.
            last = moment + ACCESS_TOKEN_LIFE_S * MICROS_PER_SECOND
            assert signing.retire_us is None or signing.retire_us > last
        keys = _step(keys, now_us=now_us, life_s=life_s, kid=str(number))
        history.update({key.kid: key for key in keys})
        # And once it is replaced, its last token still is.
        for key in history.values():
            successors = [
                other.activate_us for other in history.values() if other.activate_us > key.activate_us
            ]
            if key.retire_us is not None:
                assert key.retire_us >= min(successors) + ACCESS_TOKEN_LIFE_S * MICROS_PER_SECOND
