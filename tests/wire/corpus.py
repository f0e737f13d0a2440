"""Requests as clients and proxies send them, with places for what differs from one event to the next."""

from __future__ import annotations

from urllib.parse import quote_from_bytes

CORPUS = {
    "a proxy that speaks HTTP/1.0": """POST /collect HTTP/1.0
Host: collect.example
X-Forwarded-For: {address}
Connection: close
Content-Length: {length}
User-Agent: {agent}
Accept: */*
Cookie: {cookie}
Origin: https://shop.example

""",
    "browser, fetch": """POST /collect HTTP/1.1
Host: collect.example
Connection: keep-alive
Content-Length: {length}
sec-ch-ua-platform: "Windows"
User-Agent: {agent}
sec-ch-ua: "Chromium";v="142", "Not_A Brand";v="99"
Content-Type: text/plain;charset=UTF-8
sec-ch-ua-mobile: ?0
Accept: */*
Origin: https://shop.example
Sec-Fetch-Site: same-site
Sec-Fetch-Mode: cors
Sec-Fetch-Dest: empty
Referer: https://shop.example/
Accept-Encoding: gzip, deflate, br, zstd
Accept-Language: ko-KR,ko;q=0.9
Cookie: {cookie}

""",
    "browser, behind a load balancer": """POST /collect HTTP/1.1
X-Forwarded-For: {address}
X-Forwarded-Proto: https
X-Forwarded-Port: 443
Host: collect.example
X-Amzn-Trace-Id: Root=1-692f5c3a-0123456789abcdef01234567
Content-Length: {length}
user-agent: {agent}
content-type: application/json
accept: */*
origin: https://shop.example
cookie: {cookie}

""",
    "browser, behind nginx": """POST /collect HTTP/1.1
X-Forwarded-For: {address}
Host: collect.example
Content-Length: {length}
User-Agent: {agent}
Cookie: {cookie}

""",
    "behind CloudFront": """POST /collect HTTP/1.1
Host: collect.example
User-Agent: Amazon CloudFront
X-Amz-Cf-Id: 0123456789abcdef==
Via: 2.0 0123456789abcdef.cloudfront.net (CloudFront)
X-Forwarded-For: {address}
CloudFront-Viewer-Address: 198.51.100.4:46532
Content-Length: {length}

""",
    "pixel": """GET /collect?{query} HTTP/1.1
Host: collect.example
Connection: keep-alive
User-Agent: {agent}
Accept: image/avif,image/webp,*/*;q=0.8
Referer: https://shop.example/
Cookie: {cookie}

""",
    "pixel, behind a load balancer": """GET /collect?{query} HTTP/1.1
X-Forwarded-For: {address}
Host: collect.example
User-Agent: {agent}

""",
    "curl": """POST /collect HTTP/1.1
Host: collect.example:8080
User-Agent: curl/8.14.1
Accept: */*
Content-Length: {length}
Content-Type: application/x-www-form-urlencoded

""",
    "python-requests": """POST /collect HTTP/1.1
Host: collect.example
User-Agent: {agent}
Accept-Encoding: gzip, deflate
Accept: */*
Connection: keep-alive
Content-Length: {length}

""",
    "Go": """POST /collect HTTP/1.1
Host: collect.example
User-Agent: Go-http-client/1.1
Content-Length: {length}
Accept-Encoding: gzip

""",
    "axios": """POST /collect HTTP/1.1
Accept: application/json, text/plain, */*
Content-Type: application/json
User-Agent: {agent}
Content-Length: {length}
Accept-Encoding: gzip, compress, deflate, br
Host: collect.example
Connection: keep-alive

""",
}


def filled(
    name: str, *, agent: str = "agent", cookie: str = "a=1", address: str = "203.0.113.9", content: bytes = b"{}"
) -> bytes:
    """Return a request; the content of a GET is in its query."""
    query = quote_from_bytes(content)
    places = {"agent": agent, "cookie": cookie, "address": address, "length": len(content), "query": query}
    head = CORPUS[name].format_map(places).replace("\n", "\r\n").encode()
    return head if name.startswith("pixel") else head + content
