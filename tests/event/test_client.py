"""The client's address is what trusted proxies say it is: against an oracle that knows the standard library only."""

from __future__ import annotations

import ipaddress
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.event.records import NOW, encoder, the_record

if TYPE_CHECKING:
    from ingest.event.line import EventEncoder

QUIET = settings(max_examples=200)
TEXT = encoder()

PRIVATE = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]


def oracle_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    host, _, zone = text.partition("%")
    if zone and ":" not in host:
        return None
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


def oracle_network(text: str) -> ipaddress.IPv4Network | ipaddress.IPv6Network:
    """Read a network; one that has nothing but IPv4 addresses mapped into IPv6 is of IPv4, as its addresses are."""
    network = ipaddress.ip_network(text)
    ends = [getattr(end, "ipv4_mapped", None) for end in (network.network_address, network.broadcast_address)]
    return next(ipaddress.summarize_address_range(*ends)) if all(ends) else network


def oracle_element(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Read one address, with or without brackets and port."""
    text = text.strip(' \t"')
    digits = set("0123456789")
    if text.startswith("["):
        host, bracket, port = text[1:].partition("]")
        port_is_right = not port or (port[0] == ":" and port[1:] and set(port[1:]) <= digits)
        return oracle_address(host) if bracket and ":" in host and port_is_right else None
    if text.count(":") == 1:
        host, _, port = text.partition(":")
        return oracle_address(host) if port and set(port) <= digits else None
    return oracle_address(text)


def oracle_forwarded_for(value: str, trusted: list[str], read=oracle_element) -> str | None:
    """Walk the elements that are not empty from the right, 32 of them, up to the first that is no address."""
    networks = [oracle_network(text) for text in trusted]
    leftmost = None
    for part in [part for part in value.split(",") if part.strip(" \t")][:-33:-1]:
        address = read(part)
        if address is None:
            break
        if not any(address in network for network in networks):
            return str(address)
        leftmost = str(address)
    return leftmost


v4 = st.ip_addresses(v=4).map(str) | st.sampled_from(
    ["10.0.0.1", "172.31.255.255", "172.32.0.0", "127.0.0.1", "9.255.255.255"]
)
v6 = st.ip_addresses(v=6).map(str) | st.sampled_from(["::1", "::", "fd00::1", "fbff::1", "2001:db8::7", "::2"])
mapped = v4.map("::ffff:{}".format)
ports = st.integers(0, 65535)
elements = st.one_of(
    v4,
    v6,
    mapped,
    st.builds("{}:{}".format, v4, ports),
    st.builds("[{}]:{}".format, v6 | mapped | v4, ports),
    v6.map("[{}]".format),
    v6.map(str.upper),
    v6.map('"{}"'.format),
    st.sampled_from(
        ["", "unknown", "_hidden", "1.2.3", "1.2.3.4.5", "256.1.1.1", "01.2.3.4", "1.2.3.4:", "1.2.3.4:x", "[::1",
         "::1]", "[::1]x", "[::1]:", "[1.2.3.4]", "fe80::1%eth0", "1.2.3.4/8", "0x7f.1", "2130706433",
         "1.2.3.4 5.6.7.8", "\xb9.2.3.4",
         "1.2.3.4\0", "::ffff:1.2.3.4.5", ":", "::", ":::", "1:2:3:4:5:6:7:8:9"]
    ),
    st.text(alphabet="0123456789abcdef.:[]% ", max_size=20),
)  # fmt: skip
separators = st.sampled_from([",", ", ", " ,", ",\t", ", ,"])


@st.composite
def forwarded_for(draw: st.DrawFn) -> str:
    parts = draw(st.lists(elements, min_size=1, max_size=6))
    value = parts[0]
    for part in parts[1:]:
        value += draw(separators) + part
    return value


def same(found: str, expected: str) -> bool:
    """Whether two texts are one address; libc and the standard library may write an IPv6 address differently."""
    return ipaddress.ip_address(found) == ipaddress.ip_address(expected)


def ip_of(encoder: EventEncoder, peer: str, **headers: str) -> str:
    head = {name.replace("_", "-").encode(): value.encode("latin-1") for name, value in headers.items()}
    return str(the_record(encoder.encode_body(NOW, encoder.peer(peer), encoder.fields(b"", head)))["ip"])


@settings(max_examples=600)
@given(value=forwarded_for())
@example(value="203.0.113.7")
@example(value="198.51.100.66, 203.0.113.7, 10.0.0.9")
@example(value="10.0.0.1, 172.16.0.1")
@example(value="junk, 203.0.113.7, junk, 10.0.0.9, junk")
@example(value="203.0.113.7, junk, 10.0.0.9")
@example(value="203.0.113.7" + ", 10.0.0.1" * 31)
@example(value="203.0.113.7" + ", 10.0.0.1" * 32)
@example(value="203.0.113.7" + ", 10.0.0.1" * 31 + "," * 500)
@example(value="[1.2.3.4]")
@example(value="::ffff:10.0.0.1, 10.0.0.9")
def test_of_x_forwarded_for_it_is_the_rightmost_untrusted_address(value):
    expected = oracle_forwarded_for(value, PRIVATE) or "10.0.0.254"
    assert same(ip_of(TEXT, "10.0.0.254", x_forwarded_for=value), expected)


def around(address: object, bits: int) -> str:
    return str(ipaddress.ip_network(f"{address}/{bits}", strict=False))


networks = st.one_of(
    st.builds(around, st.ip_addresses(v=4), st.integers(0, 32)),
    st.builds(around, st.ip_addresses(v=6), st.integers(0, 128)),
    st.builds(around, mapped, st.integers(90, 128)),
)


@settings(max_examples=200)
@given(trusted=st.lists(networks, min_size=1, max_size=5), value=forwarded_for(), peer=v4 | v6 | mapped)
@example(trusted=["0.0.0.0/0"], value="1.2.3.4, 5.6.7.8", peer="9.9.9.9")
@example(trusted=["::/0"], value="1.2.3.4, ::1, 5.6.7.8", peer="::9")
@example(trusted=["::/0"], value="1.2.3.4", peer="::ffff:9.9.9.9")
@example(trusted=["::ffff:0:0/96"], value="0.0.0.0", peer="10.0.0.1")
@example(trusted=["::fffe:0:0/95"], value="1.2.3.4, ::fffe:0:1", peer="::fffe:0:2")
@example(trusted=["::ffff:10.0.0.0/104"], value="1.2.3.4, 10.0.0.2", peer="::ffff:10.0.0.1")
@example(trusted=["96.0.0.0/3"], value="127.255.255.255, 128.0.0.0", peer="95.255.255.255")
def test_who_is_trusted_is_what_the_networks_say(trusted, value, peer):
    own = oracle_address(peer)
    believed = any(own in oracle_network(network) for network in trusted)
    expected = (oracle_forwarded_for(value, trusted) if believed else None) or str(own)
    one = encoder(TRUSTED_PROXIES=",".join(trusted))
    assert one.peer(peer).trusted == believed
    assert same(ip_of(one, peer, x_forwarded_for=value), expected)


@pytest.mark.parametrize(
    ("value", "ip"),
    [
        ("203.0.113.7", "203.0.113.7"),
        ("198.51.100.66, 203.0.113.7", "203.0.113.7"),
        ("198.51.100.66,203.0.113.7,10.0.0.1, 192.168.3.4", "203.0.113.7"),
        ("10.0.0.1, 172.16.0.9", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("203.0.113.7, unknown, 10.0.0.1", "10.0.0.1"),
        ("6.6.6.6, unknown", "10.9.9.9"),
        ("6.6.6.6, _hidden, 172.16.0.1, 10.0.0.1", "172.16.0.1"),
        ("203.0.113.7,,\t, ,10.0.0.1,", "203.0.113.7"),
        (", ,", "10.9.9.9"),
        ("fe80::1%eth0", "fe80::1"),
        ("203.0.113.7, [fe80::1%25en0]:80", "fe80::1"),
        ("unknown", "10.9.9.9"),
        ("", "10.9.9.9"),
        ("203.0.113.7:52814", "203.0.113.7"),
        ("[2001:db8::7]:52814", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("2001:DB8:0:0::7", "2001:db8::7"),
        ("::ffff:203.0.113.7", "203.0.113.7"),
        ("::ffff:10.0.0.1, 10.0.0.2", "10.0.0.1"),
        ("198.51.100.66, ::ffff:203.0.113.7", "203.0.113.7"),
    ],
)
def test_x_forwarded_for(value, ip):
    assert ip_of(TEXT, "10.9.9.9", x_forwarded_for=value) == ip


@pytest.mark.parametrize(
    ("value", "ip"),
    [
        ("198.51.100.10:46532", "198.51.100.10"),
        ("2001:0db8:85a3:0:0:8a2e:0370:7334:46532", "2001:db8:85a3::8a2e:370:7334"),
        ("2001:db8::1:46532", "2001:db8::1"),
        ("2001:db8::4653:46532", "2001:db8::4653"),
        ("::1:8080", "::1"),
        ("2001:db8:::46532", "2001:db8::"),
        ("2001:db8::", "2001:db8::"),
        ("2001:db8::80", "2001:db8::80"),
        ("::ffff:198.51.100.10:46532", "198.51.100.10"),
        ("[2001:db8::1]:46532", "2001:db8::1"),
        ("198.51.100.10", "198.51.100.10"),
        ("10.0.0.1:80", "10.0.0.1"),
        ("nobody:80", "10.9.9.9"),
        ("", "10.9.9.9"),
    ],
)
def test_cloudfront_viewer_address_writes_ipv6_without_brackets(value, ip):
    assert ip_of(TEXT, "10.9.9.9", cloudfront_viewer_address=value) == ip


@QUIET
@given(address=v4 | v6 | mapped, port=ports)
def test_cloudfront_viewer_address_always_ends_in_a_port(address, port):
    found = ip_of(TEXT, "10.9.9.9", cloudfront_viewer_address=f"{address}:{port}")
    assert same(found, str(oracle_address(address)))


@pytest.mark.parametrize("name", ["CF-Connecting-IP", "X-Real-IP", "True-Client-IP"])
@pytest.mark.parametrize(
    ("value", "ip"),
    [("203.0.113.7", "203.0.113.7"), ("2001:DB8::7", "2001:db8::7"), (" 203.0.113.7 ", "203.0.113.7"),
     ("x", "10.9.9.9"), ("198.51.100.1, 203.0.113.7", "203.0.113.7"), ("10.0.0.1", "10.0.0.1"),
     ("203.0.113.7, x", "10.9.9.9"), ("6.6.6.6,203.0.113.7, ", "203.0.113.7"),
     ("::ffff:203.0.113.7", "203.0.113.7")],
)  # fmt: skip
def test_single_address_headers(name, value, ip):
    one = encoder(CLIENT_IP_HEADERS=name)
    assert ip_of(one, "10.9.9.9", **{name.lower().replace("-", "_"): value}) == ip
    assert ip_of(one, "10.9.9.9", x_forwarded_for="203.0.113.99") == "10.9.9.9", "not asked for"


def test_headers_are_asked_in_their_order_and_junk_in_one_leaves_it_to_the_next():
    first = encoder(CLIENT_IP_HEADERS="CloudFront-Viewer-Address,X-Forwarded-For")
    both = {"cloudfront_viewer_address": "203.0.113.1:1", "x_forwarded_for": "203.0.113.2"}
    assert ip_of(first, "10.9.9.9", **both) == "203.0.113.1"
    assert ip_of(TEXT, "10.9.9.9", **both) == "203.0.113.2"
    assert ip_of(first, "10.9.9.9", **both | {"cloudfront_viewer_address": "junk"}) == "203.0.113.2"
    assert ip_of(TEXT, "10.9.9.9", **both | {"x_forwarded_for": "unknown"}) == "203.0.113.1"


# E12: Forwarded (RFC 7239), long lists, repeated lines.

FORWARDED = encoder(CLIENT_IP_HEADERS="Forwarded")


@pytest.mark.parametrize(
    ("value", "ip"),
    [
        ("for=203.0.113.7", "203.0.113.7"),
        ("For=203.0.113.7;proto=https;by=10.0.0.1", "203.0.113.7"),
        ('by=10.0.0.1 ; FOR="203.0.113.7:4711"', "203.0.113.7"),
        ('for="[2001:db8:cafe::17]:4711"', "2001:db8:cafe::17"),
        ('for="[2001:DB8::17]"', "2001:db8::17"),
        ("for=192.0.2.43, for=198.51.100.17", "198.51.100.17"),
        ('for="198.51.100.17:_gazonk"', "198.51.100.17"),
        ('for="[2001:db8::17]:_a.b-c"', "2001:db8::17"),
        ('for="_gazonk:_gazonk"', "10.9.9.9"),
        ("for=203.0.113.7, for=10.0.0.9;by=10.0.0.1, ,", "203.0.113.7"),
        ("for=10.0.0.2, for=10.0.0.3", "10.0.0.2"),
        ('for=203.0.113.7;by="a,b", for=10.0.0.9', "203.0.113.7"),
        ('for=203.0.113.7;host="x, for=6.6.6.6"', "203.0.113.7"),
        ('for=", for=203.0.113.7', "203.0.113.7"),
        ('x="for=6.6.6.6, for=203.0.113.7;by=_a', "203.0.113.7"),
        ("for=6.6.6.6, for=unknown", "10.9.9.9"),
        ("for=6.6.6.6, for=_hidden, for=10.0.0.1", "10.0.0.1"),
        ("for=6.6.6.6, proto=https", "10.9.9.9"),
        ("for=6.6.6.6;for=7.7.7.7", "10.9.9.9"),
        ("203.0.113.7", "10.9.9.9"),
        ("xfor=203.0.113.7", "10.9.9.9"),
        ("for", "10.9.9.9"),
        ("", "10.9.9.9"),
    ],
)
def test_forwarded_E12(value, ip):
    assert ip_of(FORWARDED, "10.9.9.9", forwarded=value) == ip
    assert ip_of(FORWARDED, "203.0.113.99", forwarded=value) == "203.0.113.99", "an untrusted peer"
    assert ip_of(FORWARDED, "10.9.9.9", x_forwarded_for="203.0.113.99") == "10.9.9.9", "not asked for"


def oracle_node(part: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    nodes = [pair.split("=", 1)[1] for pair in part.split(";") if pair.strip().lower().startswith("for=")]
    return oracle_element(nodes[0]) if len(nodes) == 1 else None


nodes = st.one_of(
    v4.map("for={}".format),
    st.builds('For="{}:{}"'.format, v4, ports),
    st.builds('for="[{}]:{}"'.format, v6, ports),
    st.sampled_from(["for=unknown", "for=_a", "proto=http", "", "for=", ";", "junk", "for=1.2.3.4;for=1.2.3.4"]),
)


@QUIET
@given(
    value=st.lists(
        st.builds("{}{}{}".format, st.sampled_from(["", "proto=h;", "by=_x;"]), nodes, st.sampled_from(["", ";a=1"])),
        min_size=1,
        max_size=40,
    ).map(", ".join)
)  # fmt: skip
@example(value="for=203.0.113.7" + ", for=10.0.0.1" * 31)
@example(value="for=203.0.113.7" + ", for=10.0.0.1" * 32)
def test_forwarded_is_walked_as_x_forwarded_for_is_E12(value):
    expected = oracle_forwarded_for(value, PRIVATE, oracle_node) or "10.0.0.254"
    assert same(ip_of(FORWARDED, "10.0.0.254", forwarded=value), expected)


@QUIET
@given(junk=st.text(alphabet='",;=\\ for1.', max_size=40), address=v4)
def test_a_client_cannot_hide_what_a_proxy_appends_to_forwarded_E12(junk, address):
    found = ip_of(FORWARDED, "10.0.0.254", forwarded=f"{junk}, for={address};by=10.0.0.1")
    if not any(ipaddress.ip_address(address) in ipaddress.ip_network(network) for network in PRIVATE):
        assert found == address


@pytest.mark.parametrize(
    "tail", [",", ", ", "x,", "10.0.0.1,", ";,", '",', '"', ";", ":,", "[", "for=10.0.0.1,", 'for="[::1]",']
)
def test_a_long_list_costs_no_more_than_its_length_E12(tail):
    """Count calls, not seconds: as many as a list of 64 elements takes, for one of 16 KiB."""
    everything = encoder(CLIENT_IP_HEADERS="X-Forwarded-For,Forwarded,X-Real-IP,CloudFront-Viewer-Address")

    def calls(size: int) -> int:
        value = (tail * size)[:size]
        head = dict.fromkeys(("x_forwarded_for", "forwarded", "x_real_ip", "cloudfront_viewer_address"), value)
        counted = 0

        def count(_frame, event, _argument) -> None:
            nonlocal counted
            counted += event in ("call", "c_call")

        before = sys.getprofile()
        sys.setprofile(count)
        try:
            ip_of(everything, "10.0.0.254", **head)
        finally:
            sys.setprofile(before)
        return counted

    calls(64)
    assert calls(16 * 1024) <= calls(1024) + 200


def test_of_repeated_lines_the_last_is_the_one_that_the_last_proxy_wrote_E12():
    for name in ("x_real_ip", "cf_connecting_ip"):
        one = encoder(CLIENT_IP_HEADERS=name.replace("_", "-"))
        assert ip_of(one, "10.9.9.9", **{name: "6.6.6.6, 203.0.113.7"}) == "203.0.113.7"
    one = encoder(CLIENT_IP_HEADERS="CloudFront-Viewer-Address")
    assert ip_of(one, "10.9.9.9", cloudfront_viewer_address="6.6.6.6:1, 2001:db8::7:443") == "2001:db8::7"


@QUIET
@given(peer=v4 | v6, value=forwarded_for(), viewer=elements)
def test_an_untrusted_peer_is_never_believed(peer, value, viewer):
    believed = any(oracle_address(peer) in ipaddress.ip_network(network) for network in PRIVATE)
    if believed:
        peer = "203.0.113.9"
    found = ip_of(TEXT, peer, x_forwarded_for=value, cloudfront_viewer_address=viewer)
    assert same(found, str(oracle_address(peer)))


@pytest.mark.parametrize(
    ("address", "ip", "trusted"),
    [
        ("127.0.0.1", "127.0.0.1", True),
        ("::ffff:10.0.0.1", "10.0.0.1", True),
        ("::ffff:203.0.113.9", "203.0.113.9", False),
        ("fe80::1%eth0", "fe80::1", False),
        ("2001:DB8:0::9", "2001:db8::9", False),
        ("", "", False),
        ("/run/ingest.sock", "/run/ingest.sock", False),
    ],
)
def test_the_peer_in_canonical_form(address, ip, trusted):
    peer = TEXT.peer(address)
    assert (peer.address, peer.trusted) == (ip, trusted)


def test_the_headers_to_keep_are_those_that_are_read():
    one = encoder(CLIENT_IP_HEADERS="X-Real-IP,X-Forwarded-For")
    assert one.headers == (b"user-agent", b"cookie", b"x-real-ip", b"x-forwarded-for")
