"""Any request becomes one valid JSON line, and the client's address is what trusted proxies say it is."""

from __future__ import annotations

import ipaddress
import json

import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.config.settings import load
from ingest.event.line import EventEncoder

KEYS = ["ts", "ip", "user_agent", "cookie", "body"]
NOW = 1_764_721_594
QUIET = settings(deadline=None, max_examples=200)


def encoder(**variables: str) -> EventEncoder:
    return EventEncoder(load(variables))


TEXT = encoder()
JSON = encoder(BODY_FORMAT="json")


def the_one_line(line: bytes) -> dict[str, object]:
    """Return the record; fail unless it is one line of UTF-8, one object, the contract's keys in their order."""
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    text = line.decode()
    pairs = json.loads(text, object_pairs_hook=list)
    assert [key for key, _ in pairs] == KEYS
    assert orjson.loads(line) == json.loads(text)
    record = json.loads(text)
    assert type(record["ts"]) is int
    return record


# The line.


@QUIET
@given(body=st.binary(), agent=st.binary(), cookie=st.binary(), forwarded=st.binary(), viewer=st.binary())
@example(body=b'","ip":"1.1.1.1', agent=b'"\\', cookie=b"\x00\x1f\x7f", forwarded=b",", viewer=b":")
@example(body=b"\xed\xa0\x80\xff\n\r\xe2\x80\xa8", agent=b"", cookie=b"", forwarded=b"[", viewer=b"]:1")
def test_any_bytes_become_one_valid_line(body, agent, cookie, forwarded, viewer):
    head = {
        b"user-agent": agent,
        b"cookie": cookie,
        b"x-forwarded-for": forwarded,
        b"cloudfront-viewer-address": viewer,
    }
    for content in (body, bytearray(body)):
        record = the_one_line(TEXT.encode(NOW, TEXT.peer("10.0.0.1"), TEXT.fields(content, head)))
        assert record["ts"] == NOW
        ipaddress.ip_address(record["ip"])
        # Bytes that are not UTF-8 become U+FFFD, whichever field they are in, and text in the others is untouched.
        assert record["body"] == body.decode("utf-8", "replace")
        assert record["user_agent"] == agent.decode("utf-8", "replace")
        assert record["cookie"] == cookie.decode("utf-8", "replace")


@QUIET
@given(body=st.text(), agent=st.text(), cookie=st.text())
def test_text_survives_the_round_trip(body, agent, cookie):
    head = {b"user-agent": agent.encode(), b"cookie": cookie.encode()}
    record = the_one_line(TEXT.encode(NOW, TEXT.peer("203.0.113.9"), TEXT.fields(body.encode(), head)))
    assert record == {"ts": NOW, "ip": "203.0.113.9", "user_agent": agent, "cookie": cookie, "body": body}


def test_the_line_is_that_of_the_contract():
    head = {b"user-agent": b"Mozilla/5.0", b"cookie": b"a=1"}
    line = TEXT.encode(1764721594, TEXT.peer("203.0.113.7"), TEXT.fields(b'{"a":1}', head))
    assert line == (
        rb'{"ts":1764721594,"ip":"203.0.113.7","user_agent":"Mozilla/5.0","cookie":"a=1","body":"{\"a\":1}"}' + b"\n"
    )


def test_fields_that_are_not_there_are_empty():
    record = the_one_line(TEXT.encode(NOW, TEXT.peer("203.0.113.7"), TEXT.fields(b"", {})))
    assert record == {"ts": NOW, "ip": "203.0.113.7", "user_agent": "", "cookie": "", "body": ""}


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b"\xff", "\ufffd"),
        (b"a\xc3(b", "a\ufffd(b"),
        (b"\xe2\x82", "\ufffd"),
        (b"\xf0\x9f\x98\x80", "\U0001f600"),
        (b"\xed\xa0\x80", "\ufffd" * 3),
        (b"\xc0\xaf", "\ufffd" * 2),
        (b"\xef\xbb\xbfbom", "\ufeffbom"),
    ],
)
def test_bytes_that_are_not_utf_8_become_u_fffd(raw, text):
    for field, name in ((b"user-agent", "user_agent"), (b"cookie", "cookie")):
        assert the_one_line(TEXT.encode(NOW, TEXT.peer("::1"), TEXT.fields(b"", {field: raw})))[name] == text
    assert the_one_line(TEXT.encode(NOW, TEXT.peer("::1"), TEXT.fields(raw, {})))["body"] == text


# The line with the body embedded as JSON.

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@QUIET
@given(
    value=json_values, indent=st.sampled_from([None, 0, 2]), ascii_only=st.booleans(), newline=st.sampled_from("\n\r")
)
def test_a_json_body_is_embedded_as_the_value_it_is(value, indent, ascii_only, newline):
    body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).replace("\n", newline + "\n").encode()
    try:
        orjson.loads(body)
    except orjson.JSONDecodeError:
        assert JSON.encode_body(NOW, JSON.peer("::1"), JSON.fields(body, {})) is None
        return
    line = JSON.encode_body(NOW, JSON.peer("::1"), JSON.fields(body, {b"cookie": b'"}'}))
    assert line is not None
    assert the_one_line(line)["body"] == value
    # Verbatim: its bytes are there as they came, but for line breaks.
    assert line.endswith(b',"body":' + body.replace(b"\n", b"").replace(b"\r", b"") + b"}\n")


@QUIET
@given(body=st.binary(max_size=40) | st.text(alphabet='{}[]",:1aeE+-.\\nul \n\r\t', max_size=12).map(str.encode))
@example(body=b'1,"ip":"198.51.100.66"')
@example(body=b"1}\n{")
@example(body=b"1],[2")
@example(body=b" ")
@example(body=b"\n")
@example(body=b"NaN")
@example(body=b'"\xff"')
@example(body=b'"\\ud800"')
@example(body=b"\xef\xbb\xbf1")
@example(body=b'"a\nb"')
@example(body=b"12\n34")
def test_a_body_is_embedded_only_if_it_is_json(body):
    line = JSON.encode_body(NOW, JSON.peer("::1"), JSON.fields(body, {}))
    if not body:
        assert the_one_line(line)["body"] == ""
        return
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        assert line is None
    else:
        assert the_one_line(line)["body"] == value


def test_a_body_as_deep_as_a_reader_bears_is_embedded_and_a_deeper_one_refused():
    # The line is one level deeper than the body: what is taken must be readable when it comes back from the disk.
    depth = 1
    while True:
        body = b"[" * depth + b"]" * depth
        line = JSON.encode_body(NOW, JSON.peer("::1"), JSON.fields(body, {}))
        if line is None:
            break
        orjson.loads(line)
        depth += 1
        assert depth < 5000
    assert depth > 500


def test_only_who_asks_for_it_gets_json():
    for one, body in ((TEXT, "[1]"), (JSON, [1])):
        line = one.encode_body(NOW, one.peer("::1"), one.fields(b"[1]", {}))
        assert line is not None
        assert the_one_line(line)["body"] == body


# Whose request it is: against an oracle that knows the standard library's addresses only.

PRIVATE = ["127.0.0.0/8", "::1/128", "10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]


def oracle_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = getattr(address, "ipv4_mapped", None)
    return mapped or address


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


def oracle_forwarded_for(value: str, trusted: list[str]) -> str | None:
    networks = [ipaddress.ip_network(text) for text in trusted]
    addresses = [address for part in value.split(",") if (address := oracle_element(part)) is not None]
    for address in reversed(addresses):
        if not any(address in network for network in networks):
            return str(address)
    return str(addresses[0]) if addresses else None


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
    st.builds("[{}]:{}".format, v6 | mapped, ports),
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
    return str(the_one_line(encoder.encode(NOW, encoder.peer(peer), encoder.fields(b"", head)))["ip"])


@settings(deadline=None, max_examples=600)
@given(value=forwarded_for())
@example(value="203.0.113.7")
@example(value="198.51.100.66, 203.0.113.7, 10.0.0.9")
@example(value="10.0.0.1, 172.16.0.1")
@example(value="junk, 203.0.113.7, junk, 10.0.0.9, junk")
@example(value="[1.2.3.4]")
@example(value="::ffff:10.0.0.1, 10.0.0.9")
def test_of_x_forwarded_for_it_is_the_rightmost_untrusted_address(value):
    expected = oracle_forwarded_for(value, PRIVATE) or "10.0.0.254"
    assert same(ip_of(TEXT, "10.0.0.254", x_forwarded_for=value), expected)


networks = st.one_of(
    st.builds(
        lambda ip, bits: ipaddress.ip_network((int(ip), bits), strict=False), st.ip_addresses(v=4), st.integers(0, 32)
    ),
    st.builds(
        lambda ip, bits: ipaddress.ip_network((int(ip), bits), strict=False), st.ip_addresses(v=6), st.integers(0, 128)
    ),
).map(str)


@settings(deadline=None, max_examples=200)
@given(trusted=st.lists(networks, min_size=1, max_size=5), value=forwarded_for(), peer=v4 | v6 | mapped)
@example(trusted=["0.0.0.0/0"], value="1.2.3.4, 5.6.7.8", peer="9.9.9.9")
@example(trusted=["::/0"], value="1.2.3.4, ::1, 5.6.7.8", peer="::9")
@example(trusted=["::/0"], value="1.2.3.4", peer="::ffff:9.9.9.9")
@example(trusted=["96.0.0.0/3"], value="127.255.255.255, 128.0.0.0", peer="95.255.255.255")
def test_who_is_trusted_is_what_the_networks_say(trusted, value, peer):
    own = oracle_address(peer)
    believed = any(own in ipaddress.ip_network(network) for network in trusted)
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
        ("203.0.113.7, unknown, 10.0.0.1", "203.0.113.7"),
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
     ("x", "10.9.9.9"), ("203.0.113.7, 198.51.100.1", "10.9.9.9"), ("10.0.0.1", "10.0.0.1"),
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
