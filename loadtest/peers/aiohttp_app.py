"""aiohttp's server on uvloop, with its C parser, no access log, one process.

python loadtest/peers/aiohttp_app.py PORT
"""

import sys

import uvloop
from aiohttp import web
from record import Batch

batch = Batch()


async def collect(request):
    body = await request.read()
    header = request.headers.get
    batch.add(header("X-Forwarded-For", ""), request.remote, header("User-Agent", ""), header("Cookie", ""), body)
    return web.Response()


if __name__ == "__main__":
    app = web.Application()
    app.router.add_post("/collect", collect)
    web.run_app(app, host="127.0.0.1", port=int(sys.argv[1]), access_log=None, print=None, loop=uvloop.new_event_loop())
