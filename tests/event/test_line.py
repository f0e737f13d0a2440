"""Any request becomes one valid JSON line, and nothing that is acknowledged is destroyed."""

from __future__ import annotations

import base64
import json
import tracemalloc

import duckdb
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ingest.event.refusals import ClientError
from ingest.format.record import PLAIN
from tests.event.records import NOW, REFUSED, encode, encoder, json_reference, reference, the_record

QUIET = settings(max_examples=300)
ENCODERS = {"text": encoder(), "json": encoder(BODY_FORMAT="json")}
TEXT, JSON = ENCODERS.values()

not_utf_8 = st.sampled_from(
    [b"\xff", b"a\xc3(b", b"\xe2\x82", b"\xed\xa0\x80", b"\xc0\xaf", b"\x1f\x8b\x08\x00\x01", b"\xf5\x80\x80\x80"]
)
some_bytes = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=30).map(lambda text: text.encode("utf-8", "surrogatepass")),
    st.text(alphabet='{}[]",:1aeE+-.\\nuld830 \n\r\t\u2028\u2029', max_size=16).map(str.encode),
    st.builds(b"".join, st.lists(not_utf_8 | st.just(b"x\xc3\xa9"), max_size=4)),
)


@QUIET
@given(
    form=st.sampled_from(list(ENCODERS)), method=st.sampled_from(["GET", "POST"]), body=some_bytes, query=some_bytes,
    agent=some_bytes, cookie=some_bytes, pieces=st.booleans(),
)  # fmt: skip
@example("text", "POST", b'","ip":"1.1.1.1', b"", b'"\\', b"\x00\x1f\x7f", False)
@example("text", "POST", b"\xed\xa0\x80\xff\n\r\xe2\x80\xa8", b"a=\xff&b=%FF", b"", b"", True)
@example("text", "POST", b"", b"e=leave", b'},"body":1', b',"body":', False)
@example("json", "POST", b'{"t":"\\ud83d","u":"\\ud83d\\ude00","\\\\ud83d":"\\udc00"}', b"q", b"", b"", True)
@example("json", "POST", b'1,"ip":"198.51.100.66"', b"", b"", b"", False)
@example("json", "POST", b"1}\n{", b"", b"", b"", False)
@example("json", "POST", b"12\n34", b"", b"", b"", False)
@example("json", "POST", b'"\xff"', b"\xff", b"", b"", False)
@example("json", "POST", b"\xef\xbb\xbf1", b"", b"", b"", False)
@example("json", "POST", b"1e400", b"", b"", b"", False)
@example("json", "GET", b"", b"a=1", b"", b"", False)
def test_a_line_is_what_a_plain_slow_encoder_makes(form, method, body, query, agent, cookie, pieces):
    sent = bytearray(body) if pieces and body else body
    line = encode(ENCODERS[form], method, sent, query, user_agent=agent, cookie=cookie)
    expected = reference(form, method, body, query, agent, cookie)
    if expected is REFUSED:
        assert isinstance(line, ClientError)
        assert (line.status, line.close) == (400, False)
    else:
        assert the_record(line) == expected


@QUIET
@given(body=st.binary(), agent=st.binary(), cookie=st.binary(), forwarded=st.binary(), viewer=st.binary())
@example(body=b"", agent=b"", cookie=b"", forwarded=b",", viewer=b":")
@example(body=b"", agent=b"", cookie=b"", forwarded=b"[", viewer=b"]:1")
def test_any_bytes_in_any_header_become_one_valid_line(body, agent, cookie, forwarded, viewer):
    line = encode(
        TEXT, "POST", body, b"", "10.0.0.1", user_agent=agent, cookie=cookie, x_forwarded_for=forwarded,
        cloudfront_viewer_address=viewer,
    )  # fmt: skip
    assert the_record(line)["ts"] == NOW


def test_the_line_of_a_plain_event_is_the_five_keys():
    line = encode(TEXT, "POST", b'{"a":1}', user_agent=b"Mozilla/5.0", cookie=b"a=1", peer="203.0.113.7")
    assert line == (
        rb'{"ts":1764721594,"ip":"203.0.113.7","user_agent":"Mozilla/5.0","cookie":"a=1","body":"{\"a\":1}"}' + b"\n"
    )
    assert tuple(the_record(line)) == PLAIN
    assert the_record(encode(TEXT, "POST"))["body"] == ""


# E10: nothing is destroyed.


@pytest.mark.parametrize(
    "body",
    [
        b"\xff",
        b"\x1f\x8b\x08\x00gzip",
        bytes(range(256)),
        b"a\xc3(b",
        b"\xe2\x82",
        b"\xed\xa0\x80",
        b"caf\xe9",
        b"\x80",
    ],
)
@pytest.mark.parametrize("query", [b"", b"q=1"])
def test_a_body_that_is_not_utf_8_is_kept_byte_by_byte_E10(body, query):
    record = the_record(encode(TEXT, "POST", body, query))
    assert base64.b64decode(record["body_b64"], validate=True) == body
    assert record["body"] == ""
    assert record.get("query", "") == query.decode()
    refusal = encode(JSON, "POST", body, query)
    assert isinstance(refusal, ClientError)
    assert refusal.status == 400


def test_what_is_not_utf_8_in_a_header_leaves_the_body_alone_E10():
    record = the_record(encode(TEXT, "POST", "가".encode(), user_agent=b"A\xff", cookie=b"\xc3(=1"))
    assert record == {
        "ts": NOW, "ip": "203.0.113.9", "user_agent": "A\ufffd", "cookie": "\ufffd(=1", "body": "가",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("query", "text"),
    [
        (b"a=\xff", "a=%FF"),
        (b"\xe2\x82&\xc3\xa9", "%E2%82&é"),
        (b"%ff\xfe", "%ff%FE"),
        (b"\xed\xa0\x80", "%ED%A0%80"),
        ("q=가".encode(), "q=가"),
    ],
)
def test_a_byte_that_is_not_utf_8_in_a_query_is_written_as_a_url_writes_it_E10(query, text):
    assert the_record(encode(TEXT, "GET", query=query))["body"] == text
    assert the_record(encode(TEXT, "POST", b"b", query))["query"] == text
    assert the_record(encode(JSON, "GET", query=query))["query"] == text


# E11: a POST's query.


def test_the_query_of_a_post_is_kept_E11():
    record = the_record(encode(TEXT, "POST", b"beacon", b"e=leave&t=2"))
    assert (record["query"], record["body"]) == ("e=leave&t=2", "beacon")
    record = the_record(encode(JSON, "POST", b"[1]", b"e=leave"))
    assert (record["query"], record["body"]) == ("e=leave", [1])


def test_the_query_of_a_post_without_a_body_is_the_event_E11():
    for query in (b"e=leave", b"&", b"\xff"):
        for one in (TEXT, JSON):
            assert encode(one, "POST", b"", query) == encode(one, "GET", b"", query)
    assert the_record(encode(TEXT, "POST", b"", b"e=leave"))["body"] == "e=leave"


# E13: JSON bodies that readers of the hour can read.


def test_without_a_body_the_value_is_null_E13():
    assert the_record(encode(JSON, "POST"))["body"] is None
    record = the_record(encode(JSON, "GET", query=b"a=1"))
    assert (record["query"], record["body"]) == ("a=1", None)
    assert "query" not in the_record(encode(JSON, "GET"))


def nested(levels: int, *wraps: str) -> bytes:
    """Return a value so deep, its levels written in turn as these say."""
    value = "1"
    for level in range(levels):
        value = wraps[level % len(wraps)].replace("x", value)
    return value.encode()


@pytest.mark.parametrize(
    "wraps",
    [("[x]",), ('{"a":x}',), ("[x]", '{"a":x}'), ("[0,x,2]",), ('{"]":0,"[\\"[":x}',), ("[\n0\n,\tx ]",)],
    ids=["arrays", "objects", "both", "beside others", "brackets in strings", "white space"],
)
def test_json_is_taken_64_levels_deep_and_no_deeper_E13(wraps):
    for levels, taken in ((1, True), (60, True), (61, True), (64, True), (65, False), (66, False), (1_000, False)):
        line = encode(JSON, "POST", nested(levels, *wraps))
        assert isinstance(line, bytes) is taken, levels
        if taken:
            the_record(line)


def test_many_brackets_are_not_many_levels_E13():
    for body in (b"[" + b"[]," * 1_000 + b"1]", b'["' + b"[" * 1_000 + b'"]', b'{"' + b'{\\"[' * 300 + b'":[{}]}'):
        assert the_record(encode(JSON, "POST", body))["body"] == json.loads(body)


@pytest.mark.parametrize("digits", [1, 99, 100, 101, 102, 2_000])
@pytest.mark.parametrize(
    "form",
    ["{}", "-{}", "0.{}", "-1.5{}", "[1,{},2]", '{{"a":{}}}', "[{}]", "1{}.0", "1.0{}E-1", " {} "],
)
def test_a_number_has_at_most_100_digits_E13(form, digits):
    free = digits - sum(letter.isdigit() for letter in form.replace("[1,", "").replace(",2]", ""))
    if free < 1:
        return
    body = form.format("2" * free).encode()
    line = encode(JSON, "POST", body)
    assert isinstance(line, bytes) is (digits <= 100), body
    text = the_record(encode(TEXT, "POST", body))["body"]
    assert text == body.decode(), "as text a body may be anything"


def test_digits_in_strings_are_no_number_E13():
    for body in (
        b'"' + b"1" * 500 + b'"',
        b'{"' + b"7" * 101 + b'":"\\"' + b"8" * 101 + b'"}',
        b"[" + b"1," * 500 + b"1]",
    ):
        assert the_record(encode(JSON, "POST", body))["body"] == json.loads(body)


@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        (rb'{"t":"\ud83d"}', rb'{"t":"\ufffd"}'),
        (rb'{"t":"\uDE00\uD83D"}', rb'{"t":"\ufffd\ufffd"}'),
        (rb'"\ud83d\ud83d\ude00"', rb'"\ufffd\ud83d\ude00"'),
        (rb'"\ud83dx\ude00"', rb'"\ufffdx\ufffd"'),
        (rb'"\\ud83d\ud83d"', rb'"\\ud83d\ufffd"'),
        (rb'"\\\ud83d\u0041"', rb'"\\\ufffd\u0041"'),
        (rb'{"\udfff":1}', rb'{"\ufffd":1}'),
        (rb'"\ud83d\ude00"', rb'"\ud83d\ude00"'),
        (rb'"\ud83d\ude00\ude00\ud83d"', rb'"\ud83d\ude00\ufffd\ufffd"'),
    ],
)
def test_a_lone_surrogate_is_stored_as_u_fffd_E13(sent, stored):
    line = encode(JSON, "POST", sent)
    assert isinstance(line, bytes)
    assert line.endswith(b',"body":' + stored + b"}\n")
    the_record(line)


@QUIET
@given(
    parts=st.lists(
        st.sampled_from(
            [
                rb"\ud83d",
                rb"\uDBFF",
                rb"\ude00",
                rb"\uDC00",
                rb"\\",
                rb"\"",
                rb"\n",
                b"ud83d",
                b"x",
                rb"\u0041",
                "가".encode(),
            ]
        ),
        max_size=12,
    )
)
def test_surrogates_are_paired_as_a_reader_pairs_them_E13(parts):
    body = b'["' + b"".join(parts) + b'"]'
    assert the_record(encode(JSON, "POST", body))["body"] == json_reference(body)


@pytest.mark.parametrize(
    "body",
    [
        b'"' + rb"\n" * 32_000 + b'"x',
        b'["' + rb"\n" * 32_000 + b'",' + b"1" * 101 + b"]",
        b'["' + rb"\ud83d" * 10_000 + b'"]',
        b'"' + b"\\" * 64_000,
        b"[" + b"[]," * 21_000 + b"1]",
        b"[" * 32_000 + b"]" * 32_000,
        b'["' + b"[" * 64_000 + b'"]',
    ],
    ids=[
        "escapes, refused",
        "escapes, looked through",
        "surrogates",
        "backslashes",
        "flat",
        "deep",
        "brackets in a string",
    ],
)
def test_judging_a_body_takes_no_more_than_some_times_its_size_E13(body):
    encode(JSON, "POST", body)
    tracemalloc.start()
    try:
        encode(JSON, "POST", body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 40 * len(body)


@QUIET
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text() | st.floats(-1e9, 1e9),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
        max_leaves=20,
    ),
    indent=st.sampled_from([None, 0, 2]),
    ascii_only=st.booleans(),
    newline=st.sampled_from("\n\r"),
)  # fmt: skip
def test_a_json_body_is_embedded_verbatim(value, indent, ascii_only, newline):
    body = json.dumps(value, indent=indent, ensure_ascii=ascii_only).replace("\n", newline + "\n").encode()
    line = encode(JSON, "POST", body, cookie=b'"}')
    assert the_record(line)["body"] == value
    kept = body.replace(b"\n", b"").replace(b"\r", b"")
    kept = kept.replace("\u2028".encode(), rb"\u2028").replace("\u2029".encode(), rb"\u2029")
    assert line.endswith(b',"body":' + kept + b"}\n"), "its bytes as they came, but for line breaks and separators"


# E16: no reader takes one line for two.


@pytest.mark.parametrize("separator", ["\u2028", "\u2029"])
def test_line_separators_are_escaped_E16(separator):
    escape = json.dumps(separator)[1:-1].encode()
    raw = separator.encode()
    text = f"a{separator}\u2018b\u2019{separator}"
    for one, method, body, query in (
        (TEXT, "POST", text, ""),
        (TEXT, "GET", "", text),
        (TEXT, "POST", "x", text),
        (JSON, "POST", json.dumps({text: text}, ensure_ascii=False), ""),
        (JSON, "GET", "", text),
    ):
        line = encode(one, method, body.encode(), query.encode(), user_agent=text.encode(), cookie=text.encode())
        record = the_record(line)
        assert raw not in line
        assert line.count(escape) >= 6
        assert record["user_agent"] == record["cookie"] == text
        assert text in (record["body"], record.get("query"), *(record["body"] or ()))


def test_only_who_asks_for_it_gets_json():
    assert the_record(encode(TEXT, "POST", b"[1]"))["body"] == "[1]"
    assert the_record(encode(JSON, "POST", b"[1]"))["body"] == [1]


@pytest.mark.parametrize(
    "body", [nested(64, "[x]"), nested(64, '{"a":x}'), b"1" * 100, b"-0." + b"7" * 99, b'"\\ud83d"']
)
def test_what_is_taken_does_not_keep_duckdb_from_the_hour_E13(tmp_path, body):
    lines = [encode(JSON, "POST", b"1"), encode(JSON, "POST", body), encode(JSON, "GET", query=b"a=1")]
    (tmp_path / "hour.jsonl").write_bytes(b"".join(lines))
    with duckdb.connect() as database:
        read = database.execute(
            "SELECT query FROM read_json(?, format = 'newline_delimited', columns = {query: 'VARCHAR', body: 'JSON'})",
            [str(tmp_path / "hour.jsonl")],
        ).fetchall()
    assert read == [(None,), (None,), ("a=1",)]
