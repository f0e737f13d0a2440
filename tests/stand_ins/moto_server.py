"""The server of moto, with S3's promise that of many who create one key at once one wins.

moto looks whether there is an object, and puts its own a moment later. Each request has a thread, so that two may look
before either puts; a busy machine lets it happen. Here one object is put after the other. The body has been read by
then, so that nobody waits for a slow client.

    python -P moto_server.py -H HOST -p PORT
"""

import threading

from moto.s3.responses import S3Response
from moto.server import main

_put_object = S3Response.put_object
_one_at_a_time = threading.Lock()


def _put_alone(response: S3Response) -> object:
    with _one_at_a_time:
        return _put_object(response)


if __name__ == "__main__":
    S3Response.put_object = _put_alone  # type: ignore[assignment, method-assign]
    main()
