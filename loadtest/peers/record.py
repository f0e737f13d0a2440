"""What every peer does with an event, so that only the frameworks differ: the JSON line, and gzip of every 5,000.

The line and the gzip are the collector's own choices (orjson, isal at level 1, in a thread). No disk, no store: a peer
keeps nothing, and what it acknowledged is lost with it. That flatters the peers, not us.
"""

import asyncio
import time

import orjson
from isal import igzip

BATCH = 5000


class Batch:
    def __init__(self):
        self.lines = []
        self.last_size = 0

    def add(self, forwarded_for, peer, user_agent, cookie, body):
        event = {
            "ts": int(time.time()),
            "ip": forwarded_for.rpartition(",")[2].strip() or peer,
            "user_agent": user_agent,
            "cookie": cookie,
            "body": body.decode("utf-8", "replace"),
        }
        self.lines.append(orjson.dumps(event))
        if len(self.lines) == BATCH:
            sealed, self.lines = self.lines, []
            asyncio.get_running_loop().run_in_executor(None, self.compress, sealed)

    def compress(self, sealed):
        self.last_size = len(igzip.compress(b"\n".join(sealed) + b"\n", compresslevel=1))
