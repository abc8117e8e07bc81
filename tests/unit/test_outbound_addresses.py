"""Which addresses are outside, over all of them, and what the operator may allow."""

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshkit.addresses import Address, Allowed, embedded, is_outside
from meshkit.outbound import AddressRefused, Outbound, outbound

# From IANA's registries of special-purpose addresses, by hand, so that it is not Python's table twice.
_INSIDE_V4 = [
    "0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12",
    "192.0.2.0/24", "192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24",
    "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32", "192.0.0.192/32",
]  # fmt: skip
_INSIDE_V6 = [
    "::/128", "::1/128", "::/96", "100::/64", "fc00::/7", "fe80::/10", "fec0::/10", "ff00::/8",
    "2001:db8::/32", "64:ff9b:1::/48", "4000::/3", "8000::/1",
]  # fmt: skip
_OUTSIDE_V4 = [
    "1.1.1.1",
    "8.8.8.8",
    "93.184.216.34",
    "172.15.0.1",
    "172.32.0.1",
    "100.128.0.1",
    "223.255.255.1",
]


def _of(networks: list[str]) -> st.SearchStrategy[Address]:
    return st.one_of([st.ip_addresses(network=network) for network in networks])


_inside_v4 = _of(_INSIDE_V4)
_outside_v4 = st.sampled_from([IPv4Address(text) for text in _OUTSIDE_V4])


def _forms(v4: Address) -> list[IPv6Address]:
    """The IPv6 addresses by which an IPv4 address may be reached."""
    bits = int(v4)
    return [
        IPv6Address((0xFFFF << 32) | bits),
        IPv6Address(int(IPv6Address("64:ff9b::")) | bits),
        IPv6Address(int(IPv6Address("2002::")) | bits << 80),
        # Teredo: the server, and the client with its bits turned over.
        IPv6Address(int(IPv6Address("2001::")) | bits << 64 | (~int(IPv4Address("8.8.8.8")) & 0xFFFFFFFF)),
        IPv6Address(int(IPv6Address("2001::")) | int(IPv4Address("8.8.8.8")) << 64 | (~bits & 0xFFFFFFFF)),
    ]


@given(_inside_v4)
def test_no_inner_address_is_outside_in_any_form(address: Address) -> None:
    assert not is_outside(address)
    for form in _forms(address):
        assert not is_outside(form), form


@given(_of(_INSIDE_V6))
def test_no_inner_ipv6_address_is_outside(address: Address) -> None:
    assert not is_outside(address)


@given(st.ip_addresses())
def test_what_python_calls_special_is_never_outside(address: Address) -> None:
    special = (
        address.is_loopback
        or address.is_link_local
        or address.is_private
        or address.is_multicast
        or address.is_reserved
        or address.is_unspecified
    )
    assert not (special and is_outside(address)) or embedded(address)


@given(_outside_v4)
def test_the_internet_is_outside(address: IPv4Address) -> None:
    assert is_outside(address)
    mapped, translated, *_ = _forms(address)
    assert is_outside(mapped)
    assert is_outside(translated)


def test_ipv6_of_the_internet_is_outside_and_a_zone_never() -> None:
    assert is_outside(IPv6Address("2606:4700:4700::1111"))
    assert not is_outside(IPv6Address("2606:4700:4700::1111%eth0"))


@given(_inside_v4)
def test_an_allowed_network_covers_its_own_addresses_only(address: Address) -> None:
    own = Allowed.parse(str(address))
    assert own.address(address)
    assert own.address(_forms(address)[0])
    assert not own.address(ip_address(int(address) ^ 1) if isinstance(address, IPv4Address) else address)


def test_what_is_allowed_is_read() -> None:
    allowed = Allowed.parse(" Login.Example.com., 10.1.0.0/16 ,fd00::/8,127.0.0.1")
    assert allowed.hosts == {"login.example.com"}
    assert allowed.networks == (
        IPv4Network("10.1.0.0/16"),
        IPv6Network("fd00::/8"),
        IPv4Network("127.0.0.1/32"),
    )
    assert allowed.host("LOGIN.example.com.")
    assert not allowed.host("evil.login.example.com")
    assert Allowed.parse("") == Allowed()


@pytest.mark.parametrize("entry", ["*.example.com", "https://a", "a:80", "10.0.0.1/8", "user@host", "a b"])
def test_what_cannot_be_allowed_is_named(entry: str) -> None:
    with pytest.raises(ValueError, match="is no host name"):
        Allowed.parse(entry)


@pytest.fixture
async def strict() -> Outbound:
    async with outbound(Allowed()) as opened:
        return opened


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "https://",
        "/keys",
        "",
        "https://user:password@example.com/",
        "https://127.0.0.1/",
        "https://[::1]/",
        "https://[::ffff:169.254.169.254]/latest/meta-data/",
        "https://169.254.169.254/latest/meta-data/",
        "https://0.0.0.0/",
        "https://[fe80::1%25eth0]/",
        "https://exa mple.com/",
    ],
)
async def test_a_bad_url_is_refused_before_anything_is_asked(strict: Outbound, url: str) -> None:
    with pytest.raises(AddressRefused) as refused:
        strict.check(url)
    assert "password" not in str(refused.value).replace("user or password", "")


async def test_a_good_url_passes(strict: Outbound) -> None:
    strict.check("https://example.com:8443/keys?a=b")
