"""The table of states, the dispatch and the text agree."""

import re

import pytest

from ingest.telemetry import Overdue
from ingest.wire import states
from ingest.wire.states import STATES, State
from tests.stand_ins.wire import SWEEP_SECONDS, Wire, post

READ, IDLE = 8.0, 65.0
SETTINGS = {"READ_TIMEOUT": "8s", "IDLE_TIMEOUT": "65s"}
SECONDS = {"IDLE_TIMEOUT": IDLE, "READ_TIMEOUT": READ, "2 s": 2.0, "none": None}


def in_state(state: State):
    wire = Wire(SETTINGS, deferred=state is State.AWAITING_COMMIT)
    client = wire.connect()
    if state is State.UNPACKING:
        wire.tick._shares_soon = True  # as if others had all shares
        wire.tick.waits(client.connection)
    client.send(
        {
            State.IDLE: post(),
            State.HEADERS: b"POST /collect HTTP/1.1\r\nHost",
            State.BODY: post(b"body")[:-1],
            State.UNPACKING: post(b"[1]", target="/collect/batch"),
            State.AWAITING_COMMIT: post(),
            State.CLOSING: b"nonsense\r\n\r\n",
        }[state]
    )
    assert client.connection.state is state
    return wire, client


def test_every_state_has_its_row():
    assert list(STATES) == list(State)
    assert [state.value for state in State] == [
        "idle",
        "headers",
        "body",
        "unpacking",
        "awaiting-commit",
        "closing",
    ]


def test_the_text_shows_the_table():
    rows = re.findall(r"^\| ([a-z][a-z-]*) +\| (.+?) +\| (.+?) +\| (.+?) +\|$", states.__doc__, re.MULTILINE)
    assert rows[0] == ("state", "entered by", "deadline", "on expiry")
    assert rows[1:] == [(state.value, rule.entered, rule.deadline, rule.on_expiry) for state, rule in STATES.items()]


@pytest.mark.parametrize("state", State)
def test_what_ends_a_state_is_what_its_row_says(state):
    wire, client = in_state(state)
    rule = STATES[state]
    seconds = SECONDS[rule.deadline]
    if seconds is None:
        wire.pass_time(1000)
        assert rule.on_expiry == "wait"
        assert client.connection.state is state
        return
    wire.pass_time(seconds - SWEEP_SECONDS)
    assert client.connection.state is state
    assert not client.closed
    answers = client.statuses
    wire.pass_time(2 * SWEEP_SECONDS)
    refused = rule.on_expiry == "refuse"
    assert client.sees_end if refused else client.closed
    assert client.statuses == [*answers, *[503] * refused], "whole requests are answered, all else ends without a word"
    assert client.transport.reset == (rule.on_expiry == "abort")
    assert dict(wire.metrics.timed_out) == {what: int(what is rule.counted) for what in Overdue}


@pytest.mark.parametrize("state", State)
def test_at_the_end_of_input_every_state_answers_what_is_owed_and_closes(state):
    wire, client = in_state(state)
    client.end()
    if state is State.AWAITING_COMMIT:
        assert not client.closed
        wire.sync_all()
    if state is State.UNPACKING:
        assert not client.closed
        wire.tick.share()
        wire.loop.settle()
    assert client.closed
    expected = {State.IDLE: [200], State.UNPACKING: [200], State.AWAITING_COMMIT: [200], State.CLOSING: [400]}
    assert client.statuses == expected.get(state, [])
    assert not client.transport.reset


def test_a_connection_closed_for_its_silence_is_counted_once_and_dropped_if_it_reads_nothing():
    wire = Wire(SETTINGS)
    client = wire.connect()
    client.transport.stuck = True
    client.send(post())
    wire.pass_time(IDLE + SWEEP_SECONDS)
    assert not client.closed, "its answer is still on the way"
    wire.pass_time(2 + SWEEP_SECONDS)
    assert client.closed
    assert wire.metrics.timed_out[Overdue.IDLE] == 1
