"""Sends events with one of the Python SDKs, as a program of a user would.

    python -m tests.sdks.drive SDK URL KEY TAG EVENTS PAUSE [gzip|get]

It says "ready", waits for a line, sends, flushes until its standard input ends, and prints the errors that the SDK
reported, as JSON. The event number n has the id TAG-000n.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    Sender = tuple[Callable[[str], Any], Callable[[], Any]]

errors: list[str] = []


def failed(error: object, _events: object = None) -> None:
    errors.append(str(error))


def bought(probe: str) -> dict[str, object]:
    return {"probe": probe, "price": 9.5}


def segment(url: str, key: str, option: str) -> Sender:
    from segment.analytics.client import Client

    client = Client(key, host=url, on_error=failed, gzip=option == "gzip", upload_size=5, upload_interval=0.2)
    return lambda probe: client.track("u1", "bought", bought(probe)), lambda: None


def rudderstack(url: str, key: str, option: str) -> Sender:
    from rudderstack.analytics.client import Client

    client = Client(key, host=url, on_error=failed, gzip=option == "gzip", upload_size=5, upload_interval=0.2)
    return lambda probe: client.track("u1", "bought", bought(probe)), lambda: None


def posthog(url: str, key: str, option: str) -> Sender:
    from posthog import Posthog

    client = Posthog(key, host=url, on_error=failed, gzip=option == "gzip", flush_at=5, flush_interval=0.2)
    return lambda probe: client.capture("bought", distinct_id="u1", properties=bought(probe)), lambda: None


def snowplow(url: str, key: str, option: str) -> Sender:
    from requests import Session
    from snowplow_tracker import AsyncEmitter, SelfDescribing, SelfDescribingJson, Subject, Tracker

    session = Session()
    session.headers["X-Write-Key"] = key
    emitter = AsyncEmitter(
        url,
        protocol="http",
        method="get" if option == "get" else "post",
        batch_size=5,
        on_failure=lambda _, unsent: failed(f"{len(unsent)} not sent"),
        session=session,
    )
    tracker = Tracker("t", emitter, Subject().set_user_id("u1"), app_id="shop", encode_base64=False)
    schema = "iglu:com.example/bought/jsonschema/1-0-0"
    return (
        lambda probe: tracker.track(SelfDescribing(SelfDescribingJson(schema, bought(probe)))),
        lambda: emitter.flush(),
    )


def main(sdk: str, url: str, key: str, tag: str, events: str, pause: str, option: str = "") -> None:
    send, flush = {"segment": segment, "rudderstack": rudderstack, "posthog": posthog, "snowplow": snowplow}[sdk](
        url, key, option
    )
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    sys.stdin.readline()
    for number in range(int(events)):
        send(f"{tag}-{number:04}")
        time.sleep(float(pause))
    ended = threading.Thread(target=sys.stdin.read, daemon=True)
    ended.start()
    while ended.is_alive():
        flush()
        ended.join(0.3)
    sys.stdout.write(json.dumps(errors) + "\n")
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(*sys.argv[1:])
