"""What Cloud Storage's XML API has and fake-gcs-server's lacks, put before it: a translation, and nothing of its own.

- ``PUT /{bucket}/{key}`` becomes an upload by the JSON API, ``x-goog-if-generation-match`` its ``ifGenerationMatch``.
- Etags are the MD5 in hex and quoted, as Google's XML API gives them; the server has them in base64.
- ``Content-Encoding`` of an upload stays with the object. What is gzip is given decompressed and without an etag to who
  does not accept gzip, and in chunks without a length then, or where it is large.
- Where the bucket is not there it is said so, with a 404.
- A listing begins after ``start-after`` or ``continuation-token`` and has pages; the server gives all of it at once.

Everything else goes through as it is.
"""

from __future__ import annotations

import base64
import gzip
import http.client
import json
import re
import threading
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape, unescape

ETAG = re.compile(rb"<ETag>([^<]*)</ETag>")
CONTENTS = re.compile(r"<Contents>.*?<Key>(.*?)</Key>.*?</Contents>", re.DOTALL)
FAILED = {HTTPStatus.NOT_FOUND, HTTPStatus.INTERNAL_SERVER_ERROR}
PAGE = 100
"""Keys of a page; Google's has 1,000."""

LARGE = 1024 * 1024
"""Stored bytes from which on what is gzip has no length. Google does not tell where that is."""

HOP = {"connection", "keep-alive", "transfer-encoding", "content-length", "host", "etag"}
TRANSLATED = {*HOP, "accept-encoding", "content-encoding"}
"""Headers of a request that the server is not to see: it decompresses what is sent, and cuts off what it gives so."""


class GcsFront:
    """Listens on a free loopback port, before the server at ``port``."""

    def __init__(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"backend": port}))
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    backend: int

    def do_GET(self) -> None:
        self._pass_on(self.command, self.path)

    do_HEAD = do_GET  # noqa: N815  # as the base class looks for them
    do_DELETE = do_GET  # noqa: N815

    def do_PUT(self) -> None:
        bucket, _, key = urlsplit(self.path).path.lstrip("/").partition("/")
        query = f"uploadType=media&name={quote(unquote(key), safe='')}"
        generation = self.headers.get("x-goog-if-generation-match")
        if generation is not None:
            query += f"&ifGenerationMatch={generation}"
        if "Content-Encoding" in self.headers:
            query += f"&contentEncoding={self.headers['Content-Encoding']}"
        self._pass_on("POST", f"/upload/storage/v1/b/{bucket}/o?{query}")

    def _pass_on(self, method: str, path: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        headers = {name: value for name, value in self.headers.items() if name.lower() not in TRANSLATED}
        headers["Accept-Encoding"] = "gzip"
        response, content = self._ask(method, path, body, headers)
        etag = response.getheader("ETag")
        query = parse_qs(urlsplit(path).query)
        if response.status in FAILED and not self._bucket_is_there():
            response.status, content = HTTPStatus.NOT_FOUND, b"<Error><Code>NoSuchBucket</Code></Error>"
        elif self.command == "PUT" and response.status == HTTPStatus.OK:
            etag, content = json.loads(content)["etag"], b""
        elif "list-type" in query and response.status == HTTPStatus.OK:
            content = _page(content.decode(), query).encode()
        self._answer(response, etag, ETAG.sub(lambda found: b"<ETag>" + _hexadecimal(found[1]) + b"</ETag>", content))

    def _answer(self, response: http.client.HTTPResponse, etag: str | None, content: bytes) -> None:
        encoded = response.getheader("Content-Encoding") == "gzip"
        transcoded = encoded and "gzip" not in self.headers.get("Accept-Encoding", "")
        self.send_response(response.status)
        for name, value in response.getheaders():
            if name.lower() not in HOP and not (transcoded and name.lower() == "content-encoding"):
                self.send_header(name, value)
        if etag and not transcoded:
            self.send_header("ETag", _hexadecimal(etag.encode()).decode())
        stored = int(response.getheader("X-Goog-Stored-Content-Length", "0"))
        if transcoded or (encoded and stored > LARGE):
            self.send_header("Transfer-Encoding", "chunked")
            data = gzip.decompress(content) if transcoded and content else content
            content = b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data)
        else:
            of_head = self.command == "HEAD"
            length = response.getheader("Content-Length", "0") if of_head else str(len(content))
            self.send_header("Content-Length", length)
        self.end_headers()
        if self.command != "HEAD":
            with suppress(ConnectionError):  # who does not want it may go
                self.wfile.write(content)

    def _bucket_is_there(self) -> bool:
        bucket = urlsplit(self.path).path.lstrip("/").partition("/")[0]
        return self._ask("GET", f"/storage/v1/b/{bucket}")[0].status == HTTPStatus.OK

    def _ask(
        self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None
    ) -> tuple[http.client.HTTPResponse, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.backend, timeout=60)
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response, content

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # as the base class names it
        pass


def _hexadecimal(etag: bytes) -> bytes:
    return b'"' + base64.b64decode(etag.strip(b'"')).hex().encode() + b'"'


def _page(listing: str, query: dict[str, list[str]]) -> str:
    """The part of a listing that is asked for, in the order of keys."""
    after = (query.get("continuation-token") or query.get("start-after") or [""])[0]
    found = {unescape(match[1]): match[0] for match in CONTENTS.finditer(listing)}
    keys = [key for key in sorted(found, key=str.encode) if key.encode() > after.encode()]
    page = keys[:PAGE]
    more = f"<NextContinuationToken>{escape(page[-1])}</NextContinuationToken>" if len(keys) > PAGE else ""
    body = "".join(found[key] for key in page) + f"<IsTruncated>{str(bool(more)).lower()}</IsTruncated>{more}"
    return CONTENTS.sub("", listing).replace("</ListBucketResult>", f"{body}</ListBucketResult>")
