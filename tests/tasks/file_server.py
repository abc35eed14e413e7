"""A small web server that serves one file, with Range and If-Range, and can be told to misbehave."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self


@dataclass
class FileServer:
    """Serves `content` at any path. The lists are used up, one item a request: `statuses` to answer instead, `cuts` to hang up
    after so many bytes. `promised` is a Content-Length that is not true. `requests` holds the headers that came.
    """

    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    statuses: list[int] = field(default_factory=list)
    cuts: list[int] = field(default_factory=list)
    promised: int | None = None
    requests: list[dict[str, str]] = field(default_factory=list)

    def __enter__(self) -> Self:
        served = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                served.requests.append(dict(self.headers))
                answer(self, served)

            def log_message(self, format: str, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}/{path}"


def answer(request: BaseHTTPRequestHandler, served: FileServer) -> None:
    if served.statuses:
        request.send_error(served.statuses.pop(0))
        return
    start = 0
    wanted = re.fullmatch(r"bytes=(\d+)-", request.headers.get("Range", ""))
    if wanted and served.ranges and request.headers.get("If-Range", served.etag) == served.etag:
        start = int(wanted.group(1))
    if start >= len(served.content) > 0 and start:
        request.send_response(416)
        request.send_header("Content-Range", f"bytes */{len(served.content)}")
        request.send_header("Content-Length", "0")
        request.end_headers()
        return
    body = served.content[start:]
    request.send_response(206 if start else 200)
    if start:
        request.send_header("Content-Range", f"bytes {start}-{len(served.content) - 1}/{len(served.content)}")
    if served.etag:
        request.send_header("ETag", served.etag)
    request.send_header("Content-Length", str(served.promised or len(body)))
    request.end_headers()
    request.wfile.write(body[: served.cuts.pop(0)] if served.cuts else body)
    request.close_connection = True
