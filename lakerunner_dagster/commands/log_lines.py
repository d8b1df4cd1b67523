"""What a process logs to standard error: lines of text, or of JSON for a collector of logs.

What belongs here: the two formats. What does not: what is logged.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

TEXT = "%(asctime)s %(levelname)s %(name)s %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a record: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, and ``error`` if any."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_to_stderr(log_format: str) -> None:
    """Log from INFO on, as ``text`` or ``json``; of clouds' libraries, which tell of each request, from WARNING on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines() if log_format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    for library in ("azure", "botocore", "google"):
        logging.getLogger(library).setLevel(logging.WARNING)
