"""The event record: which keys a line has, and in which order.

Owns `KEYS`, the table that the encoder, the docs and the readers share. Promises that a plain event has the keys of
`PLAIN` and no other, and that `body` is always last: its bytes stand between the first `,"body":` and the final `}`, so
that a reader can cut them out. Never reads or writes a line.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Key(NamedTuple):
    """One key of a line; one that is not `ALWAYS` there is absent where it has nothing to say."""

    name: str
    type: str
    there: str
    meaning: str


ALWAYS: Final = "always"
KEYS: Final = (
    Key("ts", "integer", ALWAYS, "When the request was complete: UTC, whole seconds since 1970"),
    Key(
        "ip",
        "text",
        ALWAYS,
        "The client's address, also behind trusted proxies (`TRUSTED_PROXIES`, `CLIENT_IP_HEADERS`)",
    ),
    Key("user_agent", "text", ALWAYS, 'The header `User-Agent`, or `""`'),
    Key("cookie", "text", ALWAYS, 'The header `Cookie`, or `""`'),
    Key("ts_ms", "integer", "with `TS_MS`", "`ts` in milliseconds"),
    Key("path", "text", "on one of `SDK_ROUTES`", "The path of the request"),
    Key("query", "text", "where `body` is not made of it", "The query string of the request"),
    Key("key", "text", "with `WRITE_KEYS`, if a key came", "The name of the write key, never the key itself"),
    Key(
        "headers", "object of texts", "with `EXTRA_HEADERS`, if one came", "These headers, by their names in lower case"
    ),
    Key("body_b64", "text", "for a body that is not UTF-8", "That body in base64"),
    Key(
        "body",
        "text",
        ALWAYS,
        'The body as text, `""` beside `body_b64`; of a `GET`, and of a request without a body, the query string',
    ),
)
"""With `BODY_FORMAT=json` the body of a request is a JSON value, `null` where there is none."""
OPTIONAL: Final = tuple(key.name for key in KEYS if key.there != ALWAYS)
PLAIN: Final = tuple(key.name for key in KEYS if key.there == ALWAYS)
