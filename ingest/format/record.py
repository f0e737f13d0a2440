"""The event record: which keys a line has, and in which order.

Owns `KEYS`, the table that the encoder, the docs and the readers share. Promises that a plain event has the keys of
`PLAIN` and no other, and that `body` is always last: its bytes stand between the first `,"body":` and the final `}`, so
that a reader can cut them out. Never reads or writes a line.
"""

from __future__ import annotations

from typing import Final, NamedTuple


class Key(NamedTuple):
    """One key of a line; an optional one is there only when it has something to say."""

    name: str
    meaning: str
    optional: bool = False


KEYS: Final = (
    Key("ts", "When the request was complete: UTC, whole seconds since 1970"),
    Key("ip", "The client's address, also behind trusted proxies (`TRUSTED_PROXIES`, `CLIENT_IP_HEADERS`)"),
    Key("user_agent", 'The header `User-Agent`, or `""`'),
    Key("cookie", 'The header `Cookie`, or `""`'),
    Key("ts_ms", "`ts` in milliseconds, with `TS_MS`", optional=True),
    Key("path", "The path of a request to one of `SDK_ROUTES`", optional=True),
    Key("query", "The query string of a request that `body` is not made of", optional=True),
    Key("key", "The name of the write key that came with the request, with `WRITE_KEYS`", optional=True),
    Key("headers", "The headers that `EXTRA_HEADERS` names, by their names in lower case", optional=True),
    Key("body_b64", "In base64, a body that is not UTF-8", optional=True),
    Key(
        "body",
        'The body as text, `""` beside `body_b64`; of a `GET`, and of a request without a body, the query string',
    ),
)
"""With `BODY_FORMAT=json` the body of a request is a JSON value, `null` where there is none."""
OPTIONAL: Final = tuple(key.name for key in KEYS if key.optional)
PLAIN: Final = tuple(key.name for key in KEYS if not key.optional)
