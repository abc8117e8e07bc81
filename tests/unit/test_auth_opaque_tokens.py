import functools
import operator
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from auth_svc.opaque_tokens import ID_PATTERN, TENANT_PATTERN, OpaqueToken, Prefix, new_id, new_secret, parse
from twinmesh.auth.v1 import session_service_pb2

_tokens = st.builds(
    OpaqueToken,
    st.sampled_from(Prefix),
    st.from_regex(TENANT_PATTERN, fullmatch=True),
    st.from_regex(ID_PATTERN, fullmatch=True),
    st.from_regex("[0-9a-f]{64}", fullmatch=True),
)


@given(_tokens)
def test_a_token_is_read_as_it_was_written(token: OpaqueToken) -> None:
    assert parse(token.prefix, token.text) == token


@given(_tokens)
def test_a_token_of_one_kind_is_none_of_the_other(token: OpaqueToken) -> None:
    other = next(prefix for prefix in Prefix if prefix != token.prefix)
    assert parse(other, token.text) is None


@given(st.text())
def test_any_other_text_is_no_token(text: str) -> None:
    assert parse(Prefix.API_KEY, text) is None


@pytest.mark.parametrize(
    "spoilt",
    [
        "{0}\n",
        " {0}",
        "{0}0",
        "{0},Bearer x",
        "TMK_demo_a_" + "0" * 64,
        "tmk_demo_a_" + "0" * 63,
        "tmk_demo_a_" + "F" * 64,
        "tmk_de_mo_a_" + "0" * 64,
        "tmk_-demo_a_" + "0" * 64,
        "tmk_demo__" + "0" * 64,
        "tmk_demo_a_" + "\u0660" * 64,
    ],
)
def test_nearly_is_not_enough(spoilt: str) -> None:
    good = OpaqueToken(Prefix.API_KEY, "demo", "a", "0" * 64).text
    assert parse(Prefix.API_KEY, good) is not None
    assert parse(Prefix.API_KEY, spoilt.format(good)) is None


def test_new_ones_have_the_form() -> None:
    token = OpaqueToken(Prefix.API_KEY, "demo", new_id(), new_secret())
    assert parse(Prefix.API_KEY, token.text) == token


def test_secrets_have_256_bits_and_none_comes_twice() -> None:
    made = [int(new_secret(), base=16) for _ in range(256)]
    assert len(set(made)) == len(made)
    # Each bit is set in some and not in others: by chance one is not in 2^247 runs.
    every_bit = (1 << 256) - 1
    assert functools.reduce(operator.or_, made) == every_bit
    assert functools.reduce(operator.and_, made) == 0


def test_the_longest_refresh_token_fits_its_field() -> None:
    longest = OpaqueToken(Prefix.REFRESH, "t" * 32, "i" * 64, "0" * 64)
    assert parse(Prefix.REFRESH, longest.text) == longest
    assert len(longest.text) <= 512


def test_tenants_are_those_of_the_contract() -> None:
    options = session_service_pb2.LoginRequest.DESCRIPTOR.fields_by_name["tenant"].GetOptions()
    contract = re.search(r'pattern: "([^"]*)"', str(options))
    assert contract is not None
    assert contract[1] == f"^{TENANT_PATTERN.replace('(?:', '(')}$"
