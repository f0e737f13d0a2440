"""What the switches leave out is in no line, whatever was sent."""

from __future__ import annotations

import http.cookies
import json
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.event.privacy import mask
from tests.event.records import NOW, encode, encoder, the_record

PROXY = "10.0.0.1"


def stored(body: bytes = b"{}", peer: str = PROXY, headers: dict[str, bytes] | None = None, **variables: str) -> dict:
    """Return the record of a POST under these settings; others have the same head."""
    one = encoder(**variables)
    one.wall = NOW + 0.25
    head = {name.lower().replace("-", "_"): value for name, value in (headers or {}).items()}
    record = the_record(encode(one, "POST", body, peer=peer, **head))
    asked = the_record(encode(one, "GET", query=b"q", peer=peer, **head))
    kept = the_record(encode(one, "POST", body or b"1", query=b"q", peer=peer, **head))
    for key in record.keys() - {"body", "body_b64", "query"}:
        assert record[key] == asked[key] == kept[key]
    return record


@pytest.mark.parametrize(
    ("address", "masked"),
    [
        ("203.0.113.7", "203.0.113.0"),
        ("255.255.255.255", "255.255.255.0"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1::"),
        ("::ffff:203.0.113.7", "203.0.113.0"),
        ("fe80::1%eth0", "fe80::"),
        ("::1", "::"),
        ("2002:cb00:7107::1", "2002:cb00:7100::"),
        ("64:ff9b::cb00:7107", "64:ff9b::"),
    ],
)
def test_an_address_is_masked_to_its_network(address, masked):
    forwarded = {"X-Forwarded-For": address.encode()}
    assert stored(headers=forwarded, IP_MODE="mask")["ip"] == masked
    assert stored(peer=address, IP_MODE="mask")["ip"] == masked
    assert stored(headers=forwarded, IP_MODE="none")["ip"] == stored(peer=address, IP_MODE="none")["ip"] == ""


@given(st.ip_addresses())
@example(ip_address("2002::1"))
def test_a_mask_keeps_a_24_or_a_48_and_nothing_of_the_rest(address):
    masked = mask(str(address))
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        address = mapped
    size = 24 if address.version == 4 else 40 if address in ip_network("2002::/16") else 48
    assert ip_address(masked) == ip_network((address, size), strict=False).network_address
    assert "%" not in masked


@pytest.mark.parametrize("peer", ["", "/run/ingest.sock", "unknown"])
def test_what_is_no_address_is_not_stored_as_one(peer):
    assert stored(peer=peer, IP_MODE="mask")["ip"] == ""


@pytest.mark.parametrize(
    ("cookie", "kept"),
    [
        (b"sid=1; other=2; _ga=3", "sid=1; _ga=3"),
        (b"_ga=3;sid=1", "_ga=3; sid=1"),
        (b"sid=1; sid=2", "sid=1; sid=2"),
        (b";; sid=1;; ;other=2;", "sid=1"),
        (b"sid=a=b==; x", "sid=a=b=="),
        (b'sid="1; secret=2"; _ga="x"', 'sid="1; _ga="x"'),
        (b"other=sid=1; xsid=2; sidx=3; Sid=4; $sid=5", ""),
        (b"sid; =sid; sid =6;\tsid=7\t", "sid =6; sid=7"),
        (b"other=\xff\xfe; sid=\xe9", "sid=\ufffd"),
        (b"sid\xff=1; sid\x00=2", ""),
        (b"", ""),
        (b"sid=", "sid="),
        (b"other=" + b"=;" * 4000 + b"sid=1", "sid=1"),
    ],
)
def test_only_the_named_cookies_stay_in_their_order(cookie, kept):
    assert stored(headers={"Cookie": cookie}, COOKIES="sid,_ga")["cookie"] == kept
    assert stored(headers={"Cookie": cookie}, COOKIES="none")["cookie"] == ""
    assert stored(headers={"Cookie": cookie}, COOKIES="all")["cookie"] == cookie.decode("utf-8", "replace")


@given(st.dictionaries(st.text("abcd", min_size=1, max_size=2), st.text("xyz=01-", max_size=4), max_size=6))
def test_cookies_are_read_as_the_library_reads_them(cookies):
    header = "; ".join(f"{name}={value}" for name, value in cookies.items())
    read = http.cookies.SimpleCookie(header)
    record = stored(headers={"Cookie": header.encode()}, COOKIES="a,ab,d")
    assert record["cookie"] == "; ".join(f"{name}={read[name].value}" for name in read if name in {"a", "ab", "d"})


@pytest.mark.parametrize(
    ("headers", "anonymous"),
    [
        ({"Sec-GPC": b"1"}, True),
        ({"Sec-GPC": b"1, 1"}, True),
        ({"Sec-GPC": b"0"}, False),
        ({"Sec-GPC": b"true"}, False),
        ({"Sec-GPC": b"11"}, False),
        ({"SP-Anonymous": b"*"}, True),
        ({"SP-Anonymous": b"* "}, True),
        ({"SP-Anonymous": b""}, False),
        ({"SP-Anonymous": b"1", "Sec-GPC": b"*"}, False),
        ({}, False),
    ],
)
def test_who_asks_for_it_is_stored_without_address_and_cookie(headers, anonymous):
    sent = headers | {"Cookie": b"sid=1", "X-Forwarded-For": b"203.0.113.7", "User-Agent": b"agent"}
    record = stored(headers=sent, RESPECT_GPC="true")
    assert (record["ip"], record["cookie"]) == (("", "") if anonymous else ("203.0.113.7", "sid=1"))
    assert (record["user_agent"], record["body"]) == ("agent", "{}")
    assert stored(headers=sent)["ip"] == "203.0.113.7", "who does not set it has what was there before"


@pytest.mark.parametrize(
    ("extra", "sent", "told"),
    [
        ("content-type", {"Content-Type": b"text/plain"}, {"content-type": "text/plain"}),
        ("content-type,origin", {"Origin": b"https://a"}, {"origin": "https://a"}),
        ("content-type", {}, None),
        ("content-type", {"Content-Type": b""}, None),
        ("x-a", {"X-A": b"\xff{}\"\xe2\x80\xa8"}, {"x-a": "\ufffd{}\"\u2028"}),
        ("x-b,x-a", {"X-A": b"{}", "X-B": b"2"}, {"x-b": "2", "x-a": "{}"}),
        ("user-agent", {"User-Agent": b"agent"}, {"user-agent": "agent"}),
        ("ce-*,x-a", {"Ce-Id": b"1", "Ce-Type": b"", "X-A": b"2", "Cex": b"3"}, {"ce-id": "1", "x-a": "2"}),
        ("ce-*", {"Cex": b"3"}, None),
        ("x-a,body", {"X-A": b"1", "Body": b"2"}, {"x-a": "1", "body": "2"}),
        ("body,x-a", {"X-A": b"1", "Body": b"2"}, {"x-a": "1", "body": "2"}),
        ("x-a,b*", {"X-A": b"1", "Body": b"{}", "Bodyx": b"3"}, {"x-a": "1", "body": "{}", "bodyx": "3"}),
        ("x-*,body", {"X-A": b"1", "Body": b'","body":"2"}'}, {"x-a": "1", "body": '","body":"2"}'}),
        ("x-*", {"X-Forwarded-For": b"203.0.113.7", "X-Real-Ip": b"8.8.8.8", "X-Viewer": b"9"}, None),
        ("x-*", {"X-Write-Key": b"k"}, None),
        ("c*", {"Cookie": b"sid=1", "Cloudfront-Viewer-Address": b"8.8.8.8:1", "Cf-Connecting-Ip": b"8.8.8.8"}, None),
        ("a*,h*", {"Authorization": b"Bearer k", "Host": b"h"}, None),
    ],
)  # fmt: skip
def test_the_headers_that_are_asked_for_are_told_and_no_other(extra, sent, told):
    variables = {"EXTRA_HEADERS": extra, "CLIENT_IP_HEADERS": "X-Viewer,X-Forwarded-For"}
    assert stored(headers=sent, **variables).get("headers") == told


@pytest.mark.parametrize(
    ("wall", "told"),
    [(NOW, 1000 * NOW), (NOW + 0.999_999_9, 1000 * NOW + 999), (NOW - 5, 1000 * NOW), (NOW + 5, 1000 * NOW + 999)],
)
def test_milliseconds_are_of_the_second_that_ts_names(wall, told):
    one = encoder(TS_MS="true")
    one.wall = wall
    assert the_record(encode(one, "POST", b"1"))["ts_ms"] == told


ALL_ON = {
    "IP_MODE": "mask",
    "COOKIES": "sid",
    "RESPECT_GPC": "true",
    "EXTRA_HEADERS": "content-type,x-*",
    "TS_MS": "true",
}


@pytest.mark.parametrize("body_format", ["text", "json"])
@pytest.mark.parametrize("body", [b"1", b"\xff", b""])
def test_a_line_with_all_of_it_has_its_keys_in_their_order(body_format, body):
    one = encoder(**ALL_ON, BODY_FORMAT=body_format)
    line = encode(one, "POST", body, query=b"a=1", x_a=b"2", cookie=b"sid=1; x=2")
    if body_format == "json" and body == b"\xff":
        assert not isinstance(line, bytes)
        return
    record = the_record(line)
    assert record["headers"] == {"x-a": "2"}
    assert record["ip"] == "203.0.113.0"
    assert "x=2" not in json.dumps(record)


@pytest.mark.parametrize("name", ["IP_MODE", "COOKIES", "RESPECT_GPC", "EXTRA_HEADERS", "TS_MS"])
def test_each_switch_is_off_until_it_is_set(name):
    head = {"Cookie": b"sid=1; x=2", "Sec-GPC": b"1", "Content-Type": b"text/plain", "User-Agent": b"agent"}
    plain = stored(headers=head)
    assert list(plain) == ["ts", "ip", "user_agent", "cookie", "body"]
    assert stored(headers=head, **{name: ALL_ON[name]}) != plain
