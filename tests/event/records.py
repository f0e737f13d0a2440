"""What the tests of the record share: an encoder, one line read strictly, and a slow plain encoder to compare with."""

from __future__ import annotations

import base64
import json
import math
import re
from typing import TYPE_CHECKING

import orjson

from ingest.config.settings import load
from ingest.event.line import EventEncoder
from ingest.format.record import KEYS, PLAIN

if TYPE_CHECKING:
    from ingest.event.refusals import ClientError

NOW = 1_764_721_594
REFUSED = "refused"


def encoder(**variables: str) -> EventEncoder:
    return EventEncoder(load(variables))


def the_record(line: bytes | ClientError) -> dict[str, object]:
    """Return the record; fail unless it is one line of UTF-8, one object, known keys in their order, `body` last."""
    assert isinstance(line, bytes), line
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert b"\r" not in line
    text = line.decode()
    assert not {"\u2028", "\u2029"} & set(text), "no reader sees two lines"
    keys = [key for key, _ in json.loads(text, object_pairs_hook=list)]
    assert keys == [key.name for key in KEYS if key.name in keys], "known keys, each once, in their order"
    assert set(PLAIN) <= set(keys)
    record = json.loads(text)
    assert orjson.loads(line) == record
    assert type(record["ts"]) is int
    cut_out = line[line.index(b',"body":') + len(b',"body":') : -len(b"}\n")]
    assert json.loads(cut_out) == record["body"]
    return record


def encode(
    one: EventEncoder,
    method: str,
    body: bytes = b"",
    /,
    query: bytes = b"",
    peer: str = "203.0.113.9",
    **headers: bytes,
) -> bytes | ClientError:
    """Return what the encoder makes of a request, as a connection asks it to."""
    head = {name.replace("_", "-").encode(): value for name, value in headers.items()}
    if method == "GET":
        return one.encode_query(NOW, one.peer(peer), one.fields(query, head))
    if query:
        return one.encode_both(NOW, one.peer(peer), one.fields(body, head), query)
    return one.encode_body(NOW, one.peer(peer), one.fields(body, head))


# The reference.


def percent(query: bytes) -> str:
    """Write each byte that is in no UTF-8 sequence as `%XX`; look for the longest sequence at each place."""
    text, at = "", 0
    while at < len(query):
        for size in (1, 2, 3, 4):
            try:
                text += query[at : at + size].decode()
            except UnicodeDecodeError:
                continue
            at += size
            break
        else:
            text += f"%{query[at]:02X}"
            at += 1
    return text


def reference(form: str, method: str, body: bytes, query: bytes, agent: bytes, cookie: bytes) -> dict | str:
    """Return the record of a request from an untrusted peer, or `REFUSED`, without a thought for speed."""
    record = {
        "ts": NOW,
        "ip": "203.0.113.9",
        "user_agent": agent.decode("utf-8", "replace"),
        "cookie": cookie.decode("utf-8", "replace"),
    }
    is_query = method == "GET" or (query and not body)
    asked = percent(query)
    if form == "text" and is_query:
        return record | {"body": asked}
    if asked:
        record["query"] = asked
    if form == "text":
        try:
            return record | {"body": body.decode()}
        except UnicodeDecodeError:
            return record | {"body_b64": base64.b64encode(body).decode(), "body": ""}
    if is_query or not body:
        return record | {"body": None}
    value = json_reference(body)
    return REFUSED if value is REFUSED else record | {"body": value}


class RefusedError(ValueError):
    pass


def _refuse(_: object) -> None:
    raise RefusedError


def _number(text: str) -> float:
    if sum(letter.isdigit() for letter in text) > 100 or math.isinf(float(text)):
        raise RefusedError
    return json.loads(text)


def _as_readers_see_it(value: object, depth: int = 0) -> object:
    if isinstance(value, str):
        return re.sub("[\ud800-\udfff]", "\ufffd", value)
    if isinstance(value, list | dict) and depth == 64:
        raise RefusedError
    if isinstance(value, list):
        return [_as_readers_see_it(item, depth + 1) for item in value]
    if isinstance(value, dict):
        return {_as_readers_see_it(key): _as_readers_see_it(item, depth + 1) for key, item in value.items()}
    return value


def json_reference(body: bytes) -> object:
    """Return the value of a JSON body as its readers will see it, or `REFUSED`."""
    try:
        value = json.loads(body.decode(), parse_int=_number, parse_float=_number, parse_constant=_refuse)
        return _as_readers_see_it(value)
    except (ValueError, RecursionError):
        return REFUSED
