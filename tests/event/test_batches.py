"""Bodies of many events: which items there are, against Python's own reader, and what their lines say."""

from __future__ import annotations

import base64
import json
import random
import sys
import tracemalloc
from typing import Any

import pytest

from ingest.config.settings import load
from ingest.event import elements as arrays
from ingest.event.batches import LINES_TYPES, MOST_ITEMS, Items
from ingest.event.bodies import sound_json
from ingest.event.line import EventEncoder
from ingest.event.refusals import (
    BAD_JSON,
    BODY_TOO_LARGE,
    JSON_TOO_DEEP,
    LINES_TOO_LARGE,
    NOT_A_BATCH,
    NUMBER_TOO_LONG,
    TOO_MANY_ITEMS,
    ClientError,
)

NOW = 1_764_721_594
NDJSON = b"application/x-ndjson"
JSON = b"application/json"
TEXT = EventEncoder(load({"MAX_BODY_SIZE": str(8 << 20), "BATCH_BYTES": str(1 << 30)}))
USUAL = EventEncoder(load({}))
AS_JSON = EventEncoder(load({"BODY_FORMAT": "json", "MAX_BODY_SIZE": str(8 << 20), "BATCH_BYTES": str(1 << 30)}))


def unpacked(body: bytes, kind: bytes = JSON, encoder: EventEncoder = TEXT) -> Items | ClientError:
    steps = encoder.unpack(body, kind)
    while True:
        try:
            next(steps)
        except StopIteration as end:
            return end.value


def records(items: Items | ClientError, encoder: EventEncoder = TEXT, query: bytes = b"") -> list[dict[str, Any]]:
    assert isinstance(items, Items), items
    if not items.count:
        return []
    lines = encoder.encode_items(
        NOW, encoder.peer("203.0.113.7"), encoder.fields(b"", {b"cookie": b"a\n"}), query, items
    )
    assert isinstance(lines, bytes)
    assert lines.endswith(b"\n")
    found = [json.loads(line) for line in lines.split(b"\n")[:-1]]
    assert len(found) == items.count
    return found


def bodies(body: bytes, kind: bytes = JSON) -> list[str]:
    return [record["body"] for record in records(unpacked(body, kind))]


# Arrays.


def elements(body: bytes) -> list[str] | None:
    """Return the elements of an array as they stand in it, as Python's reader finds them; None if it is no array."""

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    decoder = json.JSONDecoder(parse_constant=refuse, parse_int=str, parse_float=str)
    found = []
    try:
        text = body.decode()
        if type(decoder.decode(text)) is not list:
            return None
        at = text.index("[") + 1
        while True:
            at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n"))
            if text[at] == "]":
                return found
            _, end = decoder.raw_decode(text, at)
            found.append(text[at:end])
            at = end + len(text[end:]) - len(text[end:].lstrip(" \t\r\n"))
            at += text[at] == ","
    except (ValueError, RecursionError):
        return None


def depth_of(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth_of, value.values()), default=0)
    return 1 + max(map(depth_of, value), default=0) if isinstance(value, list) else 0


TRICKY = (
    *(
        "",
        "},{",
        "}{",
        "]",
        "[",
        '"',
        '\\"',
        "\\",
        "\\\\",
        '\\\\"},{"',
        "{",
        "}",
        ",",
        "\u2028",
        "é",
        "😀",
        "\x00",
        "\n",
    ),
    *("\ud83d", "},", '"},{"a":"', "\\u0022", "/"),
)


def drawn_value(draw: random.Random, depth: int = 0) -> object:
    kind = draw.randrange(12 if depth < 6 else 6)
    if kind < 3:
        return "".join(draw.choices(TRICKY, k=draw.randrange(4)))
    if kind < 6:
        return draw.choice((0, -1, 1.5, 1e300, 12345678901234567890123, True, False, None))
    if kind < 9:
        return [drawn_value(draw, depth + 1) for _ in range(draw.choice((0, 1, 2, 3, 12)))]
    keys = ("".join(draw.choices(("a", *TRICKY), k=draw.randrange(3))) for _ in range(draw.choice((0, 1, 2, 3, 12))))
    return {key: drawn_value(draw, depth + 1) for key in keys}


def drawn_array(draw: random.Random) -> bytes:
    """Draw an array, sound or damaged."""
    objects = draw.random() < 0.5
    values = [{"v": drawn_value(draw)} if objects else drawn_value(draw) for _ in range(draw.choice((0, 1, 2, 5, 40)))]
    indent = draw.choice((None, None, None, 1))
    separators = draw.choice(((",", ":"), (", ", ": "), (" ,\t", "\r: ")))
    text = json.dumps(values, ensure_ascii=draw.random() < 0.5, indent=indent, separators=separators)
    body = bytearray(text.encode("utf-8", "surrogatepass"))
    for _ in range(draw.choice((0, 0, 1, 1, 2))):
        at = draw.randrange(len(body)) if body else 0
        damage = draw.randrange(4)
        if damage == 0:
            body[at : at + 1] = draw.choice(
                (b"[", b"]", b"{", b"}", b'"', b",", b"\\", b" ", b":", b"\xff", b"NaN", b"")
            )
        elif damage == 1:
            del body[at:]
        elif damage == 2:
            body[at:at] = draw.choice((b"},{", b"],[", b'"},{"', b"\\", b'"', b"]", b",", b"Infinity", b"\0", b"0"))
        else:
            body += draw.choice((b" ", b"]", b"[]", b",", b"\n", b"x"))
    return bytes(body)


def differ(seed: int, cases: int) -> int:
    draw = random.Random(seed)
    size = 0
    for number in range(cases):
        body = drawn_array(draw)
        size += len(body)
        found, expected = unpacked(body), elements(body)
        if expected is None:
            assert found in (BAD_JSON, NOT_A_BATCH), (number, body)
            continue
        assert isinstance(found, Items), (number, found, body)
        assert found.rejected == []
        assert [record["body"] for record in records(found)] == expected, (number, body)
    return size


def test_an_array_has_the_elements_that_a_plain_reader_finds_and_each_is_stored_byte_for_byte():
    differ(1, 2500)


@pytest.mark.parametrize("step", [10, 16, 64])
def test_an_array_is_judged_as_if_it_were_built_wherever_its_steps_cut_it(monkeypatch, step):
    monkeypatch.setattr(arrays, "WINDOW_BYTES", step)
    monkeypatch.setattr(arrays, "PIECE_BYTES", step)
    monkeypatch.setattr(arrays, "GROUP_BYTES", 4 * step)
    differ(step, 500)
    draw = random.Random(step)
    strings = ["".join(draw.choices((*TRICKY, "a", "\\ud83d\\ude00"), k=draw.randrange(30))) for _ in range(400)]
    texts = [b'["%b"]' % text.encode("utf-8", "surrogatepass") for text in strings]
    for body in [drawn_array(draw).strip(b" \t\r\n") for _ in range(400)] + texts:
        found = unpacked(b"[%b]" % body)
        assert (found is BAD_JSON) == (sound_json(b"[%b]" % body) is None), body


@pytest.mark.parametrize("size", [1_000, 300_000])
@pytest.mark.parametrize(
    ("good", "bad"),
    [
        (b'[%b{"a":[1]}]', b'[%b{"a":[1,]}]'),
        (b'{"x":[%b0]}', b'{"x":[%b0],}'),
        (b'[%b"\\u00e9"]', b'[%b"\\u00g9"]'),
        (b"[%b1e9]", b"[%b1e]"),
        (b'[%b{"a":1}]', b"[%b{1:1}]"),
    ],
)
def test_a_fault_within_an_element_that_is_too_large_is_the_fault_of_the_array(good, bad, size):
    encoder = EventEncoder(load({"MAX_BODY_SIZE": "900"}))
    filling = b'"%b",' % (b"x" * 90) * (size // 90)
    items = unpacked(b"[1, %b,2]" % (good % filling), JSON, encoder)
    assert isinstance(items, Items)
    assert (items.count, items.rejected) == (2, [(1, BODY_TOO_LARGE)])
    assert unpacked(b"[1, %b,2]" % (bad % filling), JSON, encoder) is BAD_JSON


@pytest.mark.proof
@pytest.mark.timeout(1800)
def test_ten_million_bytes_of_arrays_have_the_elements_that_a_plain_reader_finds(capsys):
    size, seed = 0, 0
    while size < 10_000_000:
        seed += 1
        size += differ(seed, 1000)
    with capsys.disabled():
        print(f"\nbatches: {seed * 1000} arrays, {size} bytes, none read otherwise than by json")  # noqa: T201


NESTED = b'{"a":[' + b",".join([b'{"b":{"c":"},{"}}'] * 20) + b"]}"


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"[]", []),
        (b" \r\n[ \t]\n", []),
        (b'[1, 2.50 ,"a",null]', ["1", "2.50", '"a"', "null"]),
        (b'[{"a":1},{"a":1,"a":2}]', ['{"a":1}', '{"a":1,"a":2}']),
        (b'[{"a":"}"},{"a":"{"},{"a":"\\\\"},{"a":"\\""}]', ['{"a":"}"}', '{"a":"{"}', '{"a":"\\\\"}', '{"a":"\\""}']),
        (b'[{"a":"\\ud83d"},{}]', ['{"a":"\\ud83d"}', "{}"]),
        (b"[" + b",".join([NESTED] * 40) + b"]", [NESTED.decode()] * 40),
        (b'[\n {\n  "a": 1\n },\n {}\n]\n', ['{\n  "a": 1\n }', "{}"]),
    ],
)
def test_an_element_of_an_array_is_its_own_bytes(body, expected):
    assert bodies(body) == expected


@pytest.mark.parametrize(
    ("body", "refusal"),
    [
        (b"", NOT_A_BATCH),
        (b'{"a":1}', NOT_A_BATCH),
        (b"\xef\xbb\xbf[1]", NOT_A_BATCH),
        (b"[1] [2]", BAD_JSON),
        (b"[1,]", BAD_JSON),
        (b"[,1]", BAD_JSON),
        (b"[", BAD_JSON),
        (b"[{}", BAD_JSON),
        (b"[{},", BAD_JSON),
        (b"[{}}", BAD_JSON),
        (b"[{]", BAD_JSON),
        (b"[NaN]", BAD_JSON),
        (b'[{"a":Infinity},{}]', BAD_JSON),
        (b'["\xff"]', BAD_JSON),
        (b'[{"a":"\n"}]', BAD_JSON),
        (b"[{'a':1}]", BAD_JSON),
        (b"[" * 64 + b"]" * 64, None),
        (b"[" * 65 + b"]" * 65, JSON_TOO_DEEP),
        (b"[" + b'{"a":' * 63 + b"1" + b"}" * 63 + b",{}]", None),
        (b"[{}," + b'{"a":' * 64 + b"1" + b"}" * 64 + b",{}]", JSON_TOO_DEEP),
        (b"[" * 100_000, JSON_TOO_DEEP),
        (b"[" + b"{}," * MOST_ITEMS + b"{}]", TOO_MANY_ITEMS),
        (b"[" + b"0," * (MOST_ITEMS - 1) + b"0]", None),
    ],
)
def test_a_body_that_is_not_one_array_is_refused_as_a_whole(body, refusal):
    found = unpacked(body)
    assert isinstance(found, Items) if refusal is None else found is refusal


def test_a_broken_array_is_refused_whatever_stood_before_the_fault():
    good = b"[" + b",".join(b'{"n":%d}' % n for n in range(500))
    assert unpacked(good + b"]") is not BAD_JSON
    for end in (b"", b",", b",]", b",{]", b"}", b"]x"):
        assert unpacked(good + end) is BAD_JSON


# Lines.


@pytest.mark.parametrize("kind", [*sorted(LINES_TYPES), b"Application/X-NDJSON; charset=utf-8"])
def test_each_line_that_is_not_blank_is_an_event_byte_for_byte(kind):
    body = b'{"a":1}\r\n\n  \n plain text \n\t\r\n[1,2]\n{"b": 1}\r'
    assert bodies(body, kind) == ['{"a":1}', " plain text ", "[1,2]", '{"b": 1}']


def test_lines_are_found_alike_however_they_are_mixed():
    """Plain lines are taken in groups, others one by one; a reader that knows nothing of it finds the same."""
    draw = random.Random(5)
    pieces = (
        b"a",
        b'{"n":1}' * 9,
        b" ",
        b"",
        b"\xff",
        b"\r",
        b"b\r",
        "\u2028\x85é".encode(),
        b"x" * 300,
        b"\x1c",
        b" y ",
    )
    limit = 400
    encoder = EventEncoder(load({"MAX_BODY_SIZE": str(limit)}))
    for number in range(300):
        weights = draw.choice(
            ((9, 9, 0, 0, 0, 0, 0, 0, 9, 0, 0), (9, 9, 1, 1, 0, 0, 1, 1, 1, 0, 1), (1,) * len(pieces))
        )
        body = b"\n".join(draw.choices(pieces, weights, k=draw.randrange(40))) + draw.choice(
            (b"", b"\n", b"\n" + b"z" * 450)
        )
        expected = [line.removesuffix(b"\r") for line in body.split(b"\n") if line and not line.isspace()]
        found = records(unpacked(body, NDJSON, encoder), encoder)
        kept = [base64.b64decode(one["body_b64"]) if "body_b64" in one else one["body"].encode() for one in found]
        assert kept == [line for line in expected if len(line) <= limit], (number, body)


def test_the_type_decides_between_lines_and_an_array():
    assert bodies(b"[1,2]", NDJSON) == ["[1,2]"]
    assert bodies(b"[1,2]", b"text/plain") == ["1", "2"]
    assert unpacked(b"1\n2", b"text/plain") is NOT_A_BATCH
    assert bodies(b"", NDJSON) == bodies(b"\n \r\n", NDJSON) == []
    assert bodies(b"\n" * (1 << 20) + b" x", NDJSON) == [" x"]
    assert unpacked(b"a\n" * (MOST_ITEMS + 1), NDJSON) is TOO_MANY_ITEMS


def test_a_line_that_is_not_utf_8_is_kept_whole():
    items = unpacked(b"a\n\xff}\nc", NDJSON)
    a, odd, c = records(items, query=b'q="body":')
    assert list(odd) == ["ts", "ip", "user_agent", "cookie", "query", "body_b64", "body"]
    assert (base64.b64decode(odd["body_b64"]), odd["body"]) == (b"\xff}", "")
    assert [a["body"], c["body"]] == ["a", "c"]
    assert a["query"] == odd["query"] == 'q="body":'


def test_lines_of_a_batch_are_those_of_single_events():
    """Beside the order of keys, which settings may add to, that is what readers rely on."""
    settings = {"TS_MS": "true", "IP_MODE": "mask", "EXTRA_HEADERS": "x-*"}
    for encoder in (
        TEXT,
        AS_JSON,
        EventEncoder(load(settings)),
        EventEncoder(load(settings | {"BODY_FORMAT": "json"})),
    ):
        head = {b"user-agent": "é\u2028".encode(), b"cookie": b"a=1", b"x-id": b"7"}
        peer = encoder.peer("203.0.113.7")
        for item in ('{"a":"\u2028"}'.encode(), b"[]", b'"\\ud83d"', b"1.0"):
            (body, query) = (item, b"q=1")
            single = encoder.encode_both(NOW, peer, encoder.fields(body, head), query)
            items = unpacked(b"\n".join([item] * 3), NDJSON, encoder)
            assert isinstance(items, Items)
            assert encoder.encode_items(NOW, peer, encoder.fields(b"", head), query, items) == single * 3


# Items that are none.


def test_one_bad_item_fails_itself_only():
    encoder = EventEncoder(load({"BODY_FORMAT": "json", "MAX_BODY_SIZE": "200"}))
    deep = b"[" * 65 + b"]" * 65
    lines = [b'{"a":1}', b"nope", b"", b'"' + b"x" * 199 + b'"', b"1" * 101, deep, b"\xff", b'"' + b"x" * 198 + b'"']
    items = unpacked(b"\n".join(lines), NDJSON, encoder)
    assert isinstance(items, Items)
    assert items.rejected == [
        (1, BAD_JSON),
        (2, BODY_TOO_LARGE),
        (3, NUMBER_TOO_LONG),
        (4, JSON_TOO_DEEP),
        (5, BAD_JSON),
    ]
    assert [record["body"] for record in records(items, encoder)] == [{"a": 1}, "x" * 198]
    told = items.told()
    assert told.status == 200
    assert json.loads(told.body)["accepted"] == 2
    assert json.loads(told.body)["rejected"][0] == {"index": 1, "reason": BAD_JSON.reason}

    array = b"[ {}, " + b"1" * 101 + b" ,[" + b"{}," * 100 + b'{}],"a\\ud83d"]'
    items = unpacked(array, JSON, encoder)
    assert isinstance(items, Items)
    assert items.rejected == [(1, NUMBER_TOO_LONG), (2, BODY_TOO_LARGE)]
    assert [record["body"] for record in records(items, encoder)] == [{}, "a\ufffd"]


def test_without_a_good_item_the_same_is_told_with_400():
    for items in (unpacked(b"[]"), unpacked(b"{\n", NDJSON, AS_JSON)):
        assert isinstance(items, Items)
        assert items.told().status == 400
        assert set(json.loads(items.told().body)) == {"accepted", "rejected"}


def test_lines_are_counted_before_they_are_made():
    encoder = EventEncoder(load({"BATCH_BYTES": "20000"}))
    peer, head = encoder.peer("203.0.113.7"), {b"cookie": b"c" * 1000}
    for count, refused in ((15, False), (20, True)):
        items = unpacked(b"x\n" * count, NDJSON, encoder)
        assert isinstance(items, Items)
        lines = encoder.encode_items(NOW, peer, encoder.fields(b"", head), b"", items)
        assert (lines is LINES_TOO_LARGE) is refused


def test_no_step_looks_at_much_more_than_its_share():
    """Between two steps others are served; bodies are such as make the most work of their bytes."""
    wide = b"[" + b"[]," * 300_000 + b"[]]"
    for body, kind, least in (
        (b"[" + b",".join([b'{"a":"%b"}' % (b"x" * 90)] * 10_000) + b"]", JSON, 20),
        (b"[" + wide + b"]", JSON, 100),
        (b"x\r\n" * 10_000, NDJSON, 39),
        ((b"x" * 60_000 + b"\n") * 16, NDJSON, 15),
    ):
        assert sum(1 for _ in TEXT.unpack(body, kind)) >= least, body[:20]


def joined(unit: bytes, size: int) -> bytes:
    return b",".join([unit] * (size // (len(unit) + 1)))


WIDE = b"[%b]" % joined(b"[]", 60_000)


@pytest.mark.parametrize(
    "body",
    [
        b"[[%b]]" % joined(b"[]", 500_000),
        b"[[%b,]]" % joined(b"[]", 500_000),
        b"[%b]" % joined(WIDE, 500_000),
        b'[%b,{"a":%b}]' % (joined(b"[%b]" % joined(b"[]", 4_200), 500_000), WIDE),
        b"[[%b]]" % joined(b"[" * 60 + b"]" * 60, 500_000),
        b"[[%b]]" % joined(b'{"":[]}', 500_000),
        b"[[%b]]" % joined(rb'"\"[{}],\ud83d"', 500_000),
        b'["%b"]' % (rb"\\" * 250_000),
        b"[0%b]" % (b" " * 500_000),
        b"[%b]" % joined(b"0", 500_000),
    ],
    ids=lambda body: body[:12].decode(),
)
def test_no_byte_of_an_array_costs_a_call_or_is_built_beyond_a_step(body):
    """A kilobyte of gzip asks for a megabyte of these; they cost little more than the events that a client means."""
    calls = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        unpacked(body, JSON, USUAL)
    finally:
        sys.setprofile(None)
    assert calls < MOST_ITEMS * 8
    tracemalloc.start()
    try:
        unpacked(body, JSON, USUAL)
        assert tracemalloc.get_traced_memory()[1] < 5 * len(body)
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("body", [b"x\n" * MOST_ITEMS, b"1\n" * MOST_ITEMS, b"x\n1\n" * (MOST_ITEMS // 2)])
def test_what_a_body_holds_in_memory_while_it_is_unpacked_is_counted(body):
    """Items that are none take more than their bytes: many that bring nothing else would not count."""
    for _ in AS_JSON.unpack(body, NDJSON):
        pass
    tracemalloc.start()
    try:
        steps = AS_JSON.unpack(body, NDJSON)
        before = tracemalloc.get_traced_memory()[0]
        for counted in steps:
            assert tracemalloc.get_traced_memory()[0] - before < 1.3 * counted + 60_000
    finally:
        tracemalloc.stop()
