"""Starlette on uvicorn, as its documentation sets it up for production: uvloop, httptools, no access log, one worker.

python loadtest/peers/starlette_uvicorn.py PORT
"""

import sys

import uvicorn
from record import Batch
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

batch = Batch()


async def collect(request):
    body = await request.body()
    header = request.headers.get
    batch.add(header("x-forwarded-for", ""), request.client.host, header("user-agent", ""), header("cookie", ""), body)
    return Response()


app = Starlette(routes=[Route("/collect", collect, methods=["POST"])])

if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
        lifespan="off",
    )
