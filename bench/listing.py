"""A bucket of a million keys listed as reconciliation does: memory beside that for ten thousand, and keys a second.

What belongs here: a server that answers listings of S3's protocol page by page, and the listing. What does not: what
reconciliation does with the objects.

Run it with ``python -m bench.listing [keys]``.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from urllib.parse import parse_qs, urlsplit

from rich.console import Console
from rich.table import Table

from lakerunner_dagster.lake.notifications.listing import raw_objects_below
from lakerunner_dagster.lake.runs.memory import peak_memory_bytes
from lakerunner_dagster.lake.store import BucketConfiguration, Store

FEW, MANY = 10_000, 1_000_000
PAGE = 1000
PREFIX = "otel-raw/11111111-1111-4111-8111-111111111111/edge/logs"
MiB = 1024 * 1024


def main() -> None:
    """Measure, and print a table."""
    many = int(sys.argv[1]) if len(sys.argv) > 1 else MANY
    table = Table("keys", "peak memory MiB", "ratio", "goal", "keys a second", "CPU µs a key")
    first = 0.0
    for keys in (FEW, many):
        with get_context("spawn").Pool(1) as pool:  # peaks are of a process: each listing has one of its own
            peak, seconds, cpu = pool.apply(_listed, (keys,))
        first = first or peak
        goal = "≤ 1.2" if keys == many else ""
        table.add_row(
            f"{keys:,}", f"{peak:.0f}", f"{peak / first:.2f}", goal, f"{keys / seconds:,.0f}", f"{cpu / keys * 1e6:.0f}"
        )
    Console().print(table)


def _listed(keys: int) -> tuple[float, float, float]:
    """Peak memory in MiB, seconds, and CPU seconds of listing so many keys; the server's own are in the last two."""
    os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench"}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Pages,), {"keys": keys}))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    store = Store.open(BucketConfiguration("bench", "aws", region="x", endpoint=endpoint, use_path_style=True))
    began, cpu = time.perf_counter(), time.process_time()
    found = sum(1 for _ in raw_objects_below(store, ["otel-raw/"]))
    assert found == keys, f"{found} of {keys} were listed"
    measured = peak_memory_bytes() / MiB, time.perf_counter() - began, time.process_time() - cpu
    server.shutdown()
    return measured


class _Pages(BaseHTTPRequestHandler):
    """Answers ListObjectsV2 with numbered keys, whatever is asked for."""

    protocol_version = "HTTP/1.1"
    keys: int

    def do_GET(self) -> None:  # as the base class looks for it
        """A page, which begins where the token says."""
        start = int(parse_qs(urlsplit(self.path).query).get("continuation-token", ["0"])[0])
        end = min(start + PAGE, self.keys)
        contents = "".join(
            f"<Contents><Key>{PREFIX}/{number:09d}.binpb.gz</Key><LastModified>2026-02-03T12:00:00.000Z</LastModified>"
            f"<ETag>&quot;5d41402abc4b2a76b9719d911017c592&quot;</ETag><Size>48211</Size></Contents>"
            for number in range(start, end)
        )
        more = f"<NextContinuationToken>{end}</NextContinuationToken>" if end < self.keys else ""
        truncated = str(bool(more)).lower()
        body = f"<ListBucketResult><IsTruncated>{truncated}</IsTruncated>{more}{contents}</ListBucketResult>".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002  # as the base class names it
        """Nothing: a page is no news."""


if __name__ == "__main__":
    main()
