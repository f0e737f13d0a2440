"""The states of a connection: one table, which the dispatch, the documentation and the tests read.

Owns the states and what ends each of them. A deadline is armed when a state is entered and moves only when another one
is: bytes that trickle in buy no time. The rest of a request that is refused, and framed soundly, moves it by 2 s, but
never beyond the request's own.

| state           | entered by                                | deadline     | on expiry |
| --------------- | ----------------------------------------- | ------------ | --------- |
| idle            | connect; the end of a request             | IDLE_TIMEOUT | close     |
| headers         | the first byte of a request               | READ_TIMEOUT | close     |
| body            | the end of the head; the deadline goes on | READ_TIMEOUT | close     |
| unpacking       | the end of a body that takes long         | READ_TIMEOUT | refuse    |
| awaiting-commit | idle or closing, answers owed (`fsync`)   | none         | wait      |
| closing         | a refusal; `Connection: close`            | 2 s          | abort     |

A request that is unpacked has come whole, so that it is answered: with 503 if its shares do not get it through in time.
At the end of input every state answers what is owed, and then closes.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, NamedTuple

from ingest.telemetry import Overdue


class State(Enum):
    """Where a connection stands between two reads."""

    IDLE = "idle"
    HEADERS = "headers"
    BODY = "body"
    UNPACKING = "unpacking"
    AWAITING_COMMIT = "awaiting-commit"
    CLOSING = "closing"


class Rule(NamedTuple):
    """A row of the table: what begins a state, what limits it, and what happens at the limit.

    `counted` is the label under which connections are counted that met it.
    """

    entered: str
    deadline: str
    on_expiry: str
    counted: Overdue | None = None


STATES: Final[dict[State, Rule]] = {
    State.IDLE: Rule("connect; the end of a request", "IDLE_TIMEOUT", "close", Overdue.IDLE),
    State.HEADERS: Rule("the first byte of a request", "READ_TIMEOUT", "close", Overdue.REQUEST),
    State.BODY: Rule("the end of the head; the deadline goes on", "READ_TIMEOUT", "close", Overdue.REQUEST),
    State.UNPACKING: Rule("the end of a body that takes long", "READ_TIMEOUT", "refuse"),
    State.AWAITING_COMMIT: Rule("idle or closing, answers owed (`fsync`)", "none", "wait"),
    State.CLOSING: Rule("a refusal; `Connection: close`", "2 s", "abort"),
}
