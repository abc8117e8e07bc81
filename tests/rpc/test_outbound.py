"""Calls outside, against servers on this machine's addresses: 127.0.0.2 is allowed, 127.0.0.1 is inside."""

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from meshkit.addresses import Allowed
from meshkit.outbound import AddressRefused, Outbound, OutboundFailed, outbound, system_resolve
from meshkit.testing.http import Answer, Asked, HttpSite, http_site
from meshkit.testing.tls import certificate

_HOST = "keys.example.com"
_OUTSIDE, _INSIDE = "127.0.0.2", "127.0.0.1"
_ALLOWED = Allowed.parse(_OUTSIDE)


@pytest.fixture(scope="module")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return certificate(tmp_path_factory.mktemp("tls"), "site", host=_HOST)


def _server_tls(files: tuple[Path, Path]) -> ssl.SSLContext:
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(*files)
    return tls


class _Names:
    """A resolver whose answers come in turn; the last one stays."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked = 0

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked += 1
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


def _hello(_: Asked) -> Answer:
    return Answer(b"hello", headers={"X-Kind": "greeting"})


@pytest.fixture
async def outside(trusted: tuple[Path, Path]) -> AsyncIterator[HttpSite]:
    async with http_site(_hello, host=_OUTSIDE, tls=_server_tls(trusted)) as site:
        yield site


@pytest.fixture
async def inside(trusted: tuple[Path, Path], outside: HttpSite) -> AsyncIterator[HttpSite]:
    """What must not be reached: the same port and name, an inner address."""
    async with http_site(_hello, host=_INSIDE, port=outside.port, tls=_server_tls(trusted)) as site:
        yield site


@asynccontextmanager
async def _calling(trusted: tuple[Path, Path], names: _Names) -> AsyncIterator[Outbound]:
    tls = ssl.create_default_context(cafile=trusted[0])
    async with outbound(_ALLOWED, resolve=names, tls=tls) as opened:
        yield opened


async def test_a_call_reaches_the_name_by_tls(trusted: tuple[Path, Path], outside: HttpSite) -> None:
    async with _calling(trusted, _Names([_OUTSIDE])) as calls:
        answer = await calls.request(
            "POST", f"https://{_HOST}:{outside.port}/a?b=c", headers={"x-mine": "1"}, content=b"body"
        )
    assert (answer.status, answer.content, answer.headers["x-kind"]) == (200, b"hello", "greeting")
    (asked,) = outside.asked
    assert (asked.method, asked.target, asked.content) == ("POST", "/a?b=c", b"body")
    assert asked.headers["host"] == f"{_HOST}:{outside.port}"
    assert asked.headers["x-mine"] == "1"


async def test_a_name_that_is_bound_anew_after_the_check_leads_nowhere_else(
    trusted: tuple[Path, Path], outside: HttpSite, inside: HttpSite
) -> None:
    names = _Names([_OUTSIDE], [_INSIDE])
    async with _calling(trusted, names) as calls:
        await calls.request("GET", f"https://{_HOST}:{outside.port}/")
        assert names.asked == 1
        with pytest.raises(AddressRefused, match="not on the internet"):
            await calls.request("GET", f"https://{_HOST}:{outside.port}/")
    assert len(outside.asked) == 1
    assert not inside.asked


@pytest.mark.parametrize("addresses", [[_INSIDE], [_OUTSIDE, _INSIDE], ["::1"], ["::ffff:127.0.0.1"]])
async def test_a_name_with_an_inner_address_is_refused(
    trusted: tuple[Path, Path], outside: HttpSite, inside: HttpSite, addresses: list[str]
) -> None:
    async with _calling(trusted, _Names(addresses)) as calls:
        with pytest.raises(AddressRefused) as refused:
            await calls.request("GET", f"https://{_HOST}:{outside.port}/")
    assert not outside.asked
    assert not inside.asked
    assert _INSIDE not in str(refused.value)


# Each leads inside by itself or by what the system's resolver makes of it.
_INNER_HOSTS = {
    "loopback": "127.0.0.1",
    "loopback by name": "localhost",
    "loopback, name of a subdomain": "a.localhost",
    "loopback, another of its addresses": "127.99.1.1",
    "loopback, IPv6": "[::1]",
    "this host": "0.0.0.0",
    "this host, IPv6": "[::]",
    "link-local": "169.254.1.1",
    "link-local, IPv6": "[fe80::1]",
    "metadata": "169.254.169.254",
    "metadata, IPv6": "[fd00:ec2::254]",
    "metadata, Azure": "168.63.129.16",
    "metadata, Alibaba": "100.100.100.200",
    "private, 10/8": "10.0.0.1",
    "private, 172.16/12": "172.31.255.255",
    "private, 192.168/16": "192.168.0.1",
    "private, IPv6": "[fd12:3456::1]",
    "shared": "100.64.0.1",
    "multicast": "224.0.0.1",
    "mapped": "[::ffff:127.0.0.1]",
    "mapped, in hexadecimal": "[::ffff:7f00:1]",
    "mapped, metadata": "[::ffff:a9fe:a9fe]",
    "compatible": "[::127.0.0.1]",
    "translated": "[64:ff9b::7f00:1]",
    "6to4": "[2002:7f00:1::]",
    "decimal": "2130706433",
    "decimal, metadata": "2852039166",
    "octal": "0177.0.0.1",
    "octal, whole": "017700000001",
    "hexadecimal": "0x7f.0.0.1",
    "hexadecimal, whole": "0x7f000001",
    "short": "127.1",
    "mixed": "0x7f.1",
    "trailing dot": "127.0.0.1.",
    "full-width digits": "\uff11\uff12\uff17.0.0.1",
    "circled digits": "\u2460\u2461\u2466.0.0.1",
    "ideographic stops": "127\u30020\u30020\u30021",
}


@pytest.mark.parametrize("host", _INNER_HOSTS.values(), ids=_INNER_HOSTS.keys())
async def test_no_way_to_write_an_inner_address_is_called(inside: HttpSite, host: str) -> None:
    async with outbound(Allowed(), resolve=system_resolve) as calls:
        with pytest.raises((AddressRefused, OutboundFailed)) as refused:
            await calls.request("GET", f"https://{host}:{inside.port}/")
        # What does not even resolve leads nowhere.
        if isinstance(refused.value, OutboundFailed):
            assert "does not resolve" in str(refused.value)
    assert not inside.asked
    assert not inside.asked


async def test_a_redirect_is_not_followed(
    trusted: tuple[Path, Path], outside: HttpSite, inside: HttpSite
) -> None:
    outside.answer = lambda _: Answer(
        status=302, headers={"location": f"https://{_INSIDE}:{inside.port}/latest/meta-data"}
    )
    async with _calling(trusted, _Names([_OUTSIDE])) as calls:
        with pytest.raises(OutboundFailed, match="answered 302 and redirects are not followed"):
            await calls.request("GET", f"https://{_HOST}:{outside.port}/")
    assert not inside.asked


async def test_a_certificate_of_somebody_else_is_refused(
    trusted: tuple[Path, Path], outside: HttpSite
) -> None:
    async with _calling(trusted, _Names([_OUTSIDE])) as calls:
        with pytest.raises(OutboundFailed, match="cannot be reached"):
            await calls.request("GET", f"https://other.example.com:{outside.port}/")
    assert not outside.asked


async def test_answers_have_bounds(trusted: tuple[Path, Path], outside: HttpSite) -> None:
    url = f"https://{_HOST}:{outside.port}/"
    async with _calling(trusted, _Names([_OUTSIDE])) as calls:
        outside.answer = lambda _: Answer(b"x" * 5000)
        assert len((await calls.request("GET", url, most_bytes=5000)).content) == 5000
        with pytest.raises(OutboundFailed, match="more than 4999 bytes"):
            await calls.request("GET", url, most_bytes=4999)
        outside.answer = lambda _: None
        with pytest.raises(OutboundFailed, match="did not answer within"):
            await calls.request("GET", url, timeout_s=0.2)
        outside.answer = lambda _: Answer(status=503)
        with pytest.raises(OutboundFailed, match="answered 503"):
            await calls.request("GET", url)


async def test_the_environment_s_proxy_sees_nothing(
    trusted: tuple[Path, Path], outside: HttpSite, inside: HttpSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", f"http://{_INSIDE}:{inside.port}")
    async with _calling(trusted, _Names([_OUTSIDE])) as calls:
        await calls.request("GET", f"https://{_HOST}:{outside.port}/")
    assert not inside.asked


async def test_plain_http_only_for_whom_the_operator_names() -> None:
    async with http_site(_hello, host=_INSIDE) as plain:
        url = f"http://{_HOST}:{plain.port}/"
        for allowed, called in ((_HOST, url), (_INSIDE, f"http://{_INSIDE}:{plain.port}/")):
            async with outbound(Allowed.parse(allowed), resolve=_Names([_INSIDE])) as calls:
                assert (await calls.request("GET", called)).content == b"hello"
        # An address that is allowed does not make a name one that may be called in the clear.
        async with outbound(Allowed.parse(_INSIDE), resolve=_Names([_INSIDE])) as calls:
            with pytest.raises(AddressRefused, match="must begin with https"):
                await calls.request("GET", url)
        assert len(plain.asked) == 2


async def test_who_is_away_is_told_apart_from_who_is_refused() -> None:
    async def nobody(host: str, port: int) -> Sequence[str]:
        raise OSError("no such name")

    async with outbound(Allowed(), resolve=nobody) as calls:
        with pytest.raises(OutboundFailed, match="does not resolve"):
            await calls.request("GET", f"https://{_HOST}/")
