"""Who may send events: where a key may stand, which is found, and what is stored of it."""

from __future__ import annotations

import json
from base64 import b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.config.settings import load
from ingest.event.access import ANYWHERE, IN_HEAD, Access, Admitted, KeyPlace, Origins, WriteKeys
from ingest.event.line import EventEncoder
from ingest.event.refusals import BAD_KEY, BAD_ORIGIN, ClientError
from tests.event.records import NOW, the_record

SECRET, OTHER, COLON = "s3cret", "0ther/+=", "a:b:c"
KEYS = f"web:{SECRET},app:{OTHER},odd:{COLON},web:old"


def basic(pair: str) -> bytes:
    return b"Basic " + b64encode(pair.encode())


def ask(
    head: dict[bytes, bytes] | None = None,
    query: bytes = b"",
    body: bytes = b"",
    places: tuple[KeyPlace, ...] = ANYWHERE,
    keys: str = KEYS,
) -> tuple[str | ClientError, bytes]:
    """Return the name that a request's key has, or why it is refused, and the query that is left."""
    settings = load({"WRITE_KEYS": keys})
    encoder = EventEncoder(settings)
    access = Access(settings, encoder.address_of, lambda: 0.0)
    head = head or {}
    asked = access.ask(encoder.peer("203.0.113.9"), encoder.fields(b"", head), head, query, places, origin=None)
    if isinstance(asked, ClientError):
        return asked, query
    return access.key_in(body, places) if asked.key is None else asked.key, asked.query


@pytest.mark.parametrize(
    ("authorization", "name"),
    [
        (b"Bearer " + SECRET.encode(), "web"),
        (b"bearer  " + OTHER.encode(), "app"),
        (b"Bearer " + COLON.encode(), "odd"),
        (b"Bearer old", "web"),
        (b"Bearer " + SECRET.encode() + b"x", None),
        (b"Bearer " + SECRET[:-1].encode(), None),
        (b"Bearer", None),
        (b"Bearer ", None),
        (SECRET.encode(), None),
        (b"Token " + SECRET.encode(), None),
        (b"Bearer web:" + SECRET.encode(), None),
        (b"Bearer " + SECRET.encode() + b", Bearer x", None),
        (basic(f"{SECRET}:"), "web"),
        (basic(SECRET), "web"),
        (basic(f"{SECRET}:password"), "web"),
        (basic(f"{COLON}:"), "odd"),
        (basic(COLON), None),
        (basic(f"user:{SECRET}"), None),
        (basic(""), None),
        (b"Basic " + SECRET.encode(), None),
        (b"Basic \xff\xfe", None),
        (b"Basic ====", None),
    ],
)
def test_a_key_in_an_authorization_is_a_bearer_or_a_users_name(authorization, name):
    assert ask({b"authorization": authorization}) == (name or BAD_KEY, b"")


@pytest.mark.parametrize(
    ("query", "name", "left"),
    [
        (b"writeKey=s3cret", "web", b""),
        (b"k=s3cret&a=1", "web", b"a=1"),
        (b"a=1&k=s3cret&&b=%20+&", "web", b"a=1&&b=%20+&"),
        (b"k=%733cret", "web", b""),
        (b"%6b=s3cret&write%4Bey=x", "web", b""),
        (b"k=0ther/%2B=", "app", b""),
        (b"k=0ther/+=", BAD_KEY, b"k=0ther/+="),
        (b"k=a:b:c", "odd", b""),
        (b"k=a%3Ab%3ac", "odd", b""),
        (b"k=wrong&k=s3cret&a=1", "web", b"a=1"),
        (b"k=s3cret&writeKey=0ther/%2B%3D", "web", b""),
        (b"k=&a=k=s3cret", BAD_KEY, b"k=&a=k=s3cret"),
        (b"K=s3cret", BAD_KEY, b"K=s3cret"),
        (b"kk=s3cret;k=s3cret", BAD_KEY, b"kk=s3cret;k=s3cret"),
        (b"k=%", BAD_KEY, b"k=%"),
        (b"k=\xff%ff", BAD_KEY, b"k=\xff%ff"),
        (b"k=x&" * 9 + b"k=s3cret", BAD_KEY, b"k=x&" * 9 + b"k=s3cret"),
    ],
)
def test_a_key_in_a_query_is_found_and_cut_out(query, name, left):
    assert ask(query=query, places=IN_HEAD) == (name, left)
    assert ask({b"x-write-key": b"s3cret"}, query, places=IN_HEAD)[0] == "web"


@given(
    st.lists(
        st.tuples(st.sampled_from([b"k", b"writeKey", b"a", b"%6B", b"", b"kk"]), st.binary(max_size=4)), max_size=5
    )
)
@example([(b"%6B", b"1"), (b"a", b"&k=2")])
def test_no_value_of_a_key_stays_in_a_query_and_nothing_else_goes(pairs):
    query = b"&".join(name + b"=" + value for name, value in pairs)
    _, left = ask({b"x-write-key": b"s3cret"}, query)
    kept = [pair for pair in query.split(b"&") if pair.split(b"=")[0] not in {b"k", b"writeKey", b"%6B"}]
    assert left == b"&".join(kept)


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"writeKey":"s3cret"}', "web"),
        (b' {"a":1, "api_key" : "0ther/+="} ', "app"),
        (b'{"token":"s3cr\\u0065t"}', "web"),
        (b'{"token":"wrong","api_key":"s3cret"}', "web"),
        (b'{"writeKey":"s3cret","text":"\\ud83d"}', "web"),
        (b'{"writeKey":null,"token":17,"api_key":["s3cret"]}', None),
        (b'{"a":{"writeKey":"s3cret"}}', None),
        (b'[{"writeKey":"s3cret"}]', None),
        (b'{"writekey":"s3cret"}', None),
        (b'"s3cret"', None),
        (b'{"writeKey":"s3cret"', None),
        (b'{"writeKey":""}', None),
        (b"\xff", None),
        (b"", None),
        (b"[" * 60_000, None),
    ],
)
def test_a_key_in_a_body_stands_on_its_first_level(body, name):
    assert ask(body=body)[0] == (name or BAD_KEY)
    assert ask(body=body, places=IN_HEAD)[0] is BAD_KEY, "a route says where its key stands"


@pytest.mark.parametrize(
    ("body", "name"),
    [
        (b'{"event":"$pageview","properties":{"token":"s3cret"}}', "web"),
        (b'[{"event":"a","properties":{"token":"s3cret"}},{"event":"b"}]', "web"),
        (b'{"api_key":"s3cret","batch":[]}', "web"),
        (b'[{"event":"a"},{"properties":{"token":"s3cret"}}]', None),
        (b'{"properties":["s3cret"]}', None),
        (b"[[]]", None),
        (b"[]", None),
        (b"no JSON", None),
    ],
)
def test_a_key_in_properties_counts_only_where_a_route_says_so(body, name):
    found, _ = ask(body=body, places=(*ANYWHERE, KeyPlace.PROPERTIES))
    assert found == (name or BAD_KEY)
    assert ask(body=body)[0] == ("web" if body.startswith(b'{"api_key') else BAD_KEY)


@pytest.mark.parametrize(
    ("head", "query", "body", "name"),
    [
        ({b"authorization": b"Bearer old", b"x-write-key": OTHER.encode()}, b"", b"", "web"),
        ({b"authorization": b"Bearer jwt", b"x-write-key": OTHER.encode()}, b"k=s3cret", b"", "app"),
        ({b"authorization": basic("proxy:pass")}, b"k=s3cret", b'{"token":"0ther/+="}', "web"),
        ({b"x-write-key": b"wrong"}, b"k=wrong", b'{"token":"0ther/+="}', "app"),
        ({b"x-write-key": b"wrong"}, b"k=wrong", b'{"token":"wrong"}', None),
    ],
)
def test_where_keys_disagree_the_first_known_one_counts(head, query, body, name):
    assert ask(head, query, body)[0] == (name or BAD_KEY)


def test_a_route_without_a_place_for_a_key_is_open_to_nobody():
    assert ask({b"x-write-key": b"s3cret"}, places=())[0] is BAD_KEY


def test_every_secret_is_compared_and_none_is_kept():
    keys = WriteKeys((("a", "secret-one"), ("b", "secret-two")))
    kept = repr([getattr(keys, name) for name in keys.__slots__])
    assert "secret" not in kept
    assert keys.in_body(b'{"token":"secret-two"}') == "b"


def test_settings_do_not_show_a_secret():
    assert SECRET not in repr(load({"WRITE_KEYS": KEYS}))


@pytest.mark.parametrize("body_format", ["text", "json"])
def test_the_name_of_the_key_is_stored_in_its_place_and_the_body_as_it_came(body_format):
    settings = {"WRITE_KEYS": KEYS, "BODY_FORMAT": body_format, "TS_MS": "true", "EXTRA_HEADERS": "accept"}
    encoder = EventEncoder(load(settings))
    fields = encoder.fields(b'{"token":"s3cret"}', {b"accept": b"x"})
    record = the_record(encoder.encode_both(NOW, encoder.peer("203.0.113.9"), fields, b"a=1", "web"))
    assert record["key"] == "web"
    assert record["query"] == "a=1"
    assert SECRET in json.dumps(record["body"])
    as_query = encoder.encode_both(NOW, encoder.peer("203.0.113.9"), encoder.fields(b"", {}), b"a=1", "web")
    assert the_record(as_query)["key"] == "web"


@pytest.mark.parametrize(
    ("listed", "allowed", "refused"),
    [
        ("*", ["https://a", "null", ""], []),
        ("none", [], ["https://a", "null", ""]),
        ("https://a.example,null", ["https://a.example", "null"], ["http://a.example", "https://a.example:8443"]),
        (
            "https://*.shop.example",
            ["https://www.shop.example", "https://a.b.shop.example"],
            [
                *("https://shop.example", "https://.shop.example.evil", "http://www.shop.example"),
                *("https://evilshop.example", "https://www.shop.example:8443", "https://shop.example.evil.example"),
                *("https://evil.example/.shop.example", "https://evil.example#.shop.example", "https://u@x.shop.example"),
                *("https://evil.example:1.shop.example", "https://\xff.shop.example", "https://A.shop.example", ""),
            ],
        ),
        ("https://*.shop.example:8443", ["https://a.shop.example:8443"], ["https://a.shop.example"]),
    ],
)  # fmt: skip
def test_an_origin_is_on_the_list_or_it_is_not(listed, allowed, refused):
    origins = Origins(load({"CORS_ORIGINS": listed}).cors_origins)
    assert [origin for origin in allowed if not origins.allow(origin.encode("latin-1"))] == []
    assert [origin for origin in refused if origins.allow(origin.encode("latin-1"))] == []


def test_each_question_is_asked_only_where_its_setting_is_set():
    plain = load({})
    encoder = EventEncoder(plain)
    asked = (encoder.peer("203.0.113.9"), encoder.fields(b"", {}), {}, b"k=1", ANYWHERE)
    open_to_all = Access(plain, encoder.address_of, lambda: 0.0)
    assert open_to_all.is_open
    assert open_to_all.ask(*asked, origin=b"https://a") == Admitted("", b"k=1")
    for name, value in (("WRITE_KEYS", "a:b"), ("RATE_LIMIT", "1/s"), ("CORS_ORIGINS", "https://b")):
        assert not Access(load({name: value}), encoder.address_of, lambda: 0.0).is_open
    listed = Access(load({"CORS_ORIGINS": "https://b"}), encoder.address_of, lambda: 0.0)
    assert listed.ask(*asked, origin=b"https://a") is BAD_ORIGIN
    assert listed.ask(*asked, origin=None) == Admitted("", b"k=1"), "only browsers send one"


def test_a_key_in_a_query_is_found_wherever_it_stands_and_however_it_is_encoded():
    keys = WriteKeys((("web", "a-known-secret"),))
    encoded = b"".join(b"%%%x" % byte for byte in b"a-known-secret")
    assert keys.in_head({}, b"a=%&%77riteKe%79=" + encoded + b"&", IN_HEAD) == ("web", b"a=%&")
    assert keys.in_head({}, b"&k=1&&K=%6b&k&k=a-known-secret", IN_HEAD) == ("web", b"&&K=%6b")
    assert keys.in_head({}, b"&k" * 8 + b"&k=a-known-secret", IN_HEAD) == (None, b""), "so many are tried"
