"""Which addresses lie outside, on the internet, and which others an operator allows."""

from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Self

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network
# What Python calls global and is none of the internet: protocol assignments (RFC 6890; Oracle's cloud
# has metadata there), 6to4's relays (RFC 7526), and the host's agent on Azure, which hands out metadata
# as 169.254.169.254 does.
_NOT_OUTSIDE: tuple[Network, ...] = (
    ip_network("192.0.0.0/24"),
    ip_network("192.88.99.0/24"),
    ip_network("168.63.129.16/32"),
)
# The only IPv6 addresses that are given out as global unicast (RFC 4291).
_GLOBAL_UNICAST = IPv6Network("2000::/3")
# Translates to the IPv4 address in its last 32 bits (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")


def is_loopback(host: str) -> bool:
    """Say whether a name or address leads to this machine alone."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@dataclass(frozen=True, slots=True)
class Allowed:
    """What may be called although it lies inside.

    Attributes:
        hosts: names, in small letters; they may have any address, and be called without TLS.
        networks: addresses; as part of a URL they may be called without TLS.
    """

    hosts: frozenset[str] = frozenset()
    networks: tuple[Network, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read names, addresses and CIDR networks with commas between them.

        Raises:
            ValueError: an entry is none of them.
        """
        hosts, networks = set(), []
        for entry in filter(None, (part.strip() for part in text.split(","))):
            try:
                networks.append(ip_network(entry))
            except ValueError:
                name = _plain(entry)
                if not name or any(character in "/:*@ " for character in name):
                    raise ValueError(f"{entry!r} is no host name, address or network in CIDR form") from None
                hosts.add(name)
        return cls(frozenset(hosts), tuple(networks))

    def host(self, name: str) -> bool:
        """Say whether a name is allowed wherever it leads."""
        return _plain(name) in self.hosts

    def address(self, address: Address) -> bool:
        """Say whether an address, or the one that it stands for, is allowed although it may lie inside."""
        carried = embedded(address)
        return _within(address, self.networks) or (
            bool(carried) and all(_within(each, self.networks) for each in carried)
        )


def is_outside(address: Address) -> bool:
    """Say whether an address is on the internet, and so is every address that it carries inside.

    False for loopback, private, link-local (a cloud's metadata among them), shared, multicast, reserved and
    documentation addresses, and for IPv6 forms of such IPv4 addresses: mapped, compatible, 6to4, Teredo and
    NAT64.
    """
    carried = embedded(address)
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return False
        if address not in _GLOBAL_UNICAST:
            # Of the others only a translated or mapped IPv4 address can lead outside.
            return bool(carried) and all(is_outside(each) for each in carried)
    return (
        address.is_global
        and not address.is_multicast
        and not address.is_reserved
        and not _within(address, _NOT_OUTSIDE)
        and all(is_outside(each) for each in carried)
    )


def embedded(address: Address) -> tuple[IPv4Address, ...]:
    """Return the IPv4 addresses to which an IPv6 address may lead."""
    if isinstance(address, IPv4Address):
        return ()
    if address.ipv4_mapped is not None:
        return (address.ipv4_mapped,)
    if address.sixtofour is not None:
        return (address.sixtofour,)
    if address.teredo is not None:
        return address.teredo
    if address in _NAT64:
        return (IPv4Address(int(address) & 0xFFFFFFFF),)
    return ()


def literal(host: str) -> Address | None:
    """Return the address that a URL's host is, None when it is a name."""
    try:
        return ip_address(host.strip("[]"))
    except ValueError:
        return None


def _plain(name: str) -> str:
    return name.lower().rstrip(".")


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address.version == network.version and address in network for network in networks)
