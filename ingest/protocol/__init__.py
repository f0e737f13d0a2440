"""The HTTP/1.1 server side: connections, the tick that does their work, and the answers.

Knows nothing of journals, dead letters or stores: `server` injects what commits a tick's events.
"""

from ingest.protocol.answers import AnswerBook
from ingest.protocol.connection import Connection
from ingest.protocol.layouts import Layouts
from ingest.protocol.request import HeaderNames
from ingest.protocol.states import STATES, State
from ingest.protocol.tick import ConnectionLimits, Entry, Pages, Tick

__all__ = [
    "STATES",
    "AnswerBook",
    "Connection",
    "ConnectionLimits",
    "Entry",
    "HeaderNames",
    "Layouts",
    "Pages",
    "State",
    "Tick",
]
