"""BlackSheep on uvicorn: uvloop, httptools, no access log, one worker.

python loadtest/peers/blacksheep_app.py PORT
"""

import sys

import uvicorn
from blacksheep import Application, Request, Response, post
from record import Batch

app = Application(show_error_details=False)
batch = Batch()


@post("/collect")
async def collect(request: Request) -> Response:
    body = await request.read()
    header = request.headers.get_first
    batch.add(
        (header(b"X-Forwarded-For") or b"").decode(),
        request.original_client_ip,
        (header(b"User-Agent") or b"").decode(),
        (header(b"Cookie") or b"").decode(),
        body or b"",
    )
    return Response(200)


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(sys.argv[1]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
