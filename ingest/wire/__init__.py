"""RFC 9112: connections, the turn that does their work, and the answers.

Knows nothing of journals, dead letters or stores: what commits a turn's events is injected.
"""

from ingest.wire.answers import AnswerBook
from ingest.wire.connection import Connection
from ingest.wire.door import OFFICE, Door, house, street
from ingest.wire.headers import HeaderNames
from ingest.wire.layouts import Layouts
from ingest.wire.limits import ConnectionLimits
from ingest.wire.proxied import Proxied
from ingest.wire.secured import Pace, Secured
from ingest.wire.states import STATES, State
from ingest.wire.tick import Tick
from ingest.wire.turn import Turn

__all__ = [
    "OFFICE",
    "STATES",
    "AnswerBook",
    "Connection",
    "ConnectionLimits",
    "Door",
    "HeaderNames",
    "Layouts",
    "Pace",
    "Proxied",
    "Secured",
    "State",
    "Tick",
    "Turn",
    "house",
    "street",
]
