"""A large JSON value, read in steps: what is found is what a parser finds in all of it at once."""

from __future__ import annotations

import json
import random
from itertools import product

import pytest

from ingest.event import bodies, elements, values
from ingest.event.access import IN_BODY, WriteKeys
from ingest.event.bodies import json_item
from ingest.event.refusals import BAD_JSON, JSON_TOO_DEEP, NUMBER_TOO_LONG, ClientError
from ingest.event.values import Asked, Looked, look

KEYS = WriteKeys((("web", "s3cret"), ("app", '0ther"/\\\n\u00e9\U0001f511')))
PLAIN = b'"s3cret"'
ESCAPED = b'"' + b"".join(b"\\u%04x" % byte for byte in b"s3cret") + b'"'
OTHER = json.dumps('0ther"/\\\n\u00e9\U0001f511').encode()
NAMES = (b'"token"', b'"writeKey"', b'"api_key"', b'"tok\\u0065n"', b'"properties"', b'"other"', b'"to\\"ken"')
FILLERS = (
    b"1",
    b"{}",
    b"[]",
    b'"],}{[,:\\"\\\\"',
    b'"\\ud83d"',
    b'"\\ud83d\\ude00 \\\\ud83d"',
    b"[" + b"[]," * 4000 + b"0]",
    b"[" + b'{"token":"s3cret"},' * 700 + b"\r\n{}]",
    b'{"token":"s3cret",' + b'"":[],' * 2500 + b'"api_key":{}}',
    b'"' + b"x\\n" * 9000 + b'"',
    b'"' + b"1" * 9000 + b'"',
    b" \r\n" * 5000 + b"null",
    b"1" * 101,
    b"[" * 63 + b"]" * 63,
    b"[" * 64 + b"]" * 64,
    b"nul",
    b"\xff",
    b"\0",
    b"[1,,2]",
)


def looked(body: bytes, asked: Asked) -> Looked | ClientError:
    steps = look(body, asked)
    while True:
        try:
            assert next(steps) >= len(body)
        except StopIteration as end:
            return end.value


def key_in(body: bytes, *, nested: bool, in_line: bool = False) -> str | None:
    found = looked(body, Asked(in_line, IN_BODY, nested, KEYS.longest_in_json))
    return None if isinstance(found, ClientError) else KEYS.among(found.strings)


def line_of(body: bytes) -> bytes | ClientError:
    found = looked(body, Asked(in_line=True))
    return found if isinstance(found, ClientError) else found.line


def some_bodies(count: int) -> list[bytes]:
    """Make objects and arrays of members and fillers in any order, also a name twice, and some that are cut short."""
    dice = random.Random(count)
    bodies = []
    for _ in range(count):
        spaces = dice.choice((b"", b" ", b"\r\n\t"))
        sound = FILLERS[: dice.choice((8, 12, len(FILLERS)))]

        def an_object(deeper: bool, spaces: bytes = spaces, sound: tuple[bytes, ...] = sound) -> bytes:
            members = []
            for _ in range(dice.randrange(6)):
                name = dice.choice(NAMES)
                value = dice.choice((PLAIN, ESCAPED, OTHER, b'"wrong"', dice.choice(sound)))
                if name == b'"properties"' and deeper:
                    value = an_object(deeper=False)
                members.append(name + spaces + b":" + spaces + value)
            return b"{" + spaces + (spaces + b"," + spaces).join(members) + spaces + b"}"

        body = an_object(deeper=True)
        if dice.random() < 0.4:
            elements = [body, *(dice.choice((an_object(deeper=True), dice.choice(sound))) for _ in range(3))]
            body = b"[" + spaces + b",".join(elements[: dice.randrange(5)]) + b"]"
        if dice.random() < 0.1:
            body = body[: dice.randrange(len(body) + 1)]
        elif dice.random() < 0.1:
            body += dice.choice((b"}", b"]", b",", b"x", b" \r\n"))
        bodies.append(spaces + body + spaces)
    return bodies


BODIES = some_bodies(400)
SHORT = [body for body in some_bodies(1200) if len(body) < 500]


@pytest.mark.parametrize("window", [elements.WINDOW_BYTES, 24])
def test_the_key_of_a_large_body_is_the_one_that_a_parser_finds(monkeypatch, window):
    monkeypatch.setattr(elements, "WINDOW_BYTES", window)
    monkeypatch.setattr(elements, "GROUP_BYTES", 4 * window)
    names = []
    for body, nested in product(BODIES if window > 99 else SHORT, (False, True)):
        name = KEYS.in_body(body, nested=nested)
        assert key_in(body, nested=nested) == name, body
        names.append(name)
    assert {None, "web", "app"} == set(names)
    assert names.count(None) < len(names) * 3 / 4


@pytest.mark.parametrize("window", [elements.WINDOW_BYTES, 24])
def test_the_line_of_a_large_body_is_the_one_that_a_parser_finds_and_so_in_the_same_reading_as_its_key(
    monkeypatch, window
):
    monkeypatch.setattr(elements, "WINDOW_BYTES", window)
    monkeypatch.setattr(elements, "GROUP_BYTES", 4 * window)
    monkeypatch.setattr(elements, "PIECE_BYTES", 2 * window)
    monkeypatch.setattr(values, "PIECE_BYTES", 2 * window)
    monkeypatch.setattr(bodies, "MENDED_AT_ONCE", 2)
    lines = []
    for body in BODIES if window > 99 else SHORT:
        line, expected = line_of(body), json_item(body)
        if expected is BAD_JSON:
            assert line in (BAD_JSON, JSON_TOO_DEEP), body
        else:
            assert line == expected, body
        lines.append(expected)
        if isinstance(expected, bytes) and (name := KEYS.in_body(body)):
            assert key_in(body, nested=False, in_line=True) == name
    assert {type(line) for line in lines} == {bytes, ClientError}
    assert {BAD_JSON, JSON_TOO_DEEP, NUMBER_TOO_LONG} <= {line for line in lines if isinstance(line, ClientError)}


@pytest.mark.parametrize("value", [b'"x"', b"1", b"null", b"1" * 101, b"x", b'"\\ud83d"', b'"' + b"x" * 99_999 + b'"'])
def test_a_large_value_that_holds_no_other_is_taken_too(value):
    padded = b" \r\n" * 5000 + value + b"\n" * 5000
    assert line_of(padded) == json_item(padded)
    assert key_in(padded, nested=True) is None


LONE, PAIR, BACKSLASHES = b"\\ud83d", b"\\ud83d\\ude00", rb"\\\\ud83d"


@pytest.mark.parametrize("unit", [LONE, PAIR, PAIR + LONE, LONE + BACKSLASHES, b"x\\ude00" + PAIR, b"x", rb"\n\""])
@pytest.mark.parametrize("around", [b'"%b"', b'{"a":["%b"],"token":"s3cret"}', b'["%b"]', b'{"%b":1}'])
def test_a_long_string_takes_many_steps_and_is_the_one_that_a_parser_finds(unit, around):
    body = around % (unit * (400_000 // len(unit)))
    assert line_of(body) == json_item(body)
    steps = list(look(body, Asked(in_line=True)))
    assert len(steps) > 400_000 // elements.PIECE_BYTES
    assert max(steps) > 1.9 * len(body)
    assert key_in(body, nested=True) == KEYS.in_body(body)


def test_where_no_key_can_stand_nothing_is_read():
    for body in (b"[" + b"[]," * 9999, b"\n[1]", b"1", b""):
        assert list(look(body, Asked(names=IN_BODY, longest=99))) == []
    assert list(look(b"1", Asked(names=IN_BODY, nested=True, longest=99))) == []


@pytest.mark.parametrize("unit", [b"[],", b"{},", b'{"":0},', b'"a",', b'"\\ud83d",', b"1,", b"[[[[]]]],"])
@pytest.mark.parametrize("opening", [b'{"a":[', b"["])
def test_a_step_makes_no_more_than_a_window_and_all_that_is_held_is_told(unit, opening):
    body = opening + unit * (300_000 // len(unit)) + b"0]" + b"}" * (opening != b"[")
    asked = Asked(in_line=True, names=IN_BODY, nested=True, longest=99)
    sizes = list(look(body, asked))
    assert len(sizes) >= len(body) // (32 * 1024)
    assert sizes == sorted(sizes)
    assert sizes[-1] >= 2 * len(body)
