"""What would break if a line of the log were no JSON, or hid what went wrong."""

from __future__ import annotations

import json
import logging

from lakerunner_dagster.commands.log_lines import JsonLines


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error is not None else None
    return logging.LogRecord("lake.x", logging.WARNING, "x.py", 1, message, arguments, info)


def test_a_record_is_one_line_of_json_whatever_is_in_it() -> None:
    line = JsonLines().format(record("it begins %a, %s", b"\x00", 'a "line\nbreak" \x1b[0m'))
    assert "\n" not in line
    said = json.loads(line)
    assert said["message"] == "it begins b'\\x00', a \"line\nbreak\" \x1b[0m"
    assert (said["level"], said["logger"]) == ("WARNING", "lake.x")
    assert said["time"].endswith("+00:00")
    assert "error" not in said


def test_an_error_stands_in_its_line_with_its_trace() -> None:
    try:
        int("why")
    except ValueError as error:
        line = JsonLines().format(record("failed", error=error))
    assert "\n" not in line
    assert json.loads(line)["error"].startswith("Traceback")
    assert "ValueError: invalid" in json.loads(line)["error"]
