"""FastAPI on uvicorn: uvloop, httptools, no access log, one worker; the raw body, no model to validate.

python loadtest/peers/fastapi_uvicorn.py PORT
"""

import sys

import uvicorn
from fastapi import FastAPI, Request, Response
from record import Batch

app = FastAPI(openapi_url=None)
batch = Batch()


@app.post("/collect")
async def collect(request: Request) -> Response:
    body = await request.body()
    header = request.headers.get
    batch.add(header("x-forwarded-for", ""), request.client.host, header("user-agent", ""), header("cookie", ""), body)
    return Response()


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
