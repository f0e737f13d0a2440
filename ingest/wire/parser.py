"""The parser: httptools, which is that of Node.js, set up as this program needs it.

Owns how a parser is made. Never knows what its callbacks do.
"""

from __future__ import annotations

from typing import Final

from httptools import HttpRequestParser

ASCII_ONLY: Final = bytes(range(128)) + b"~" * 128
"""Translates a request line to one that the parser takes, of the same length: it refuses other bytes in a target."""


def new_parser(callbacks: object) -> HttpRequestParser:
    """Return a parser that leaves it to us when a connection ends.

    `Connection: close` counts in a head only, where `on_headers_complete` asks for it. By itself the parser would heed
    it in a trailer too, and call the next request malformed.
    """
    parser = HttpRequestParser(callbacks)
    parser.set_dangerous_leniencies(lenient_keep_alive=True)
    return parser
