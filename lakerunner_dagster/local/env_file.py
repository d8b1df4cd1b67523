"""Our marked block in a ``.env`` that is otherwise the user's.

What belongs here: reading, writing and removing the block. What does not: which settings stand in it.
"""

from __future__ import annotations

import io
import os
import re
import stat
from contextlib import suppress
from typing import TYPE_CHECKING

from dotenv import dotenv_values

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

BEGIN = "# >>> lakerunner services: written by `lakerunner services up` and `lakerunner dev`, removed when they stop"
END = "# <<< lakerunner services"

_BLOCK = re.compile(rf"^{re.escape(BEGIN)}\n(.*?)^{re.escape(END)}\n?", re.DOTALL | re.MULTILINE)


class EnvBlock:
    """The block in the file at ``path``. It stands last, so that of two lines for one name ours counts."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def read(self) -> dict[str, str]:
        """What stands in the block; empty where there is none."""
        found = _BLOCK.search(self._text())
        values = dotenv_values(stream=io.StringIO(found[1]), interpolate=False) if found else {}
        return {name: value or "" for name, value in values.items()}

    def write(self, values: Mapping[str, str]) -> None:
        """Put the block in place of the one before, else at the end. A new file is for its owner's eyes only."""
        before = _BLOCK.sub("", self._text())
        if before and not before.endswith("\n"):
            before += "\n"
        lines = "".join(f"{name}={_quoted(value)}\n" for name, value in values.items())
        _replace(self._path, f"{before}{BEGIN}\n{lines}{END}\n")

    def remove(self) -> None:
        """Take the block away, and the file with it when nothing else is in it and no link leads there."""
        text = self._text()
        rest = _BLOCK.sub("", text)
        if rest == text:
            return
        if rest or self._path.is_symlink():
            _replace(self._path, rest)
        else:
            self._path.unlink()

    def _text(self) -> str:
        if not self._path.exists():
            return ""
        with self._path.open(newline="") as file:
            return file.read()


def _replace(path: Path, text: str) -> None:
    """Replace a file, or the one that a link leads to, as a whole, leaving it to its owner with the mode that it has.

    Who reads meanwhile, and who looks after a kill or a full disk, finds all of the old lines or all of the new ones.
    """
    target = path.resolve()
    new = target.with_name(f"{target.name}.new")
    new.unlink(missing_ok=True)  # of one who was killed
    try:
        with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", newline="") as file:
            if target.exists():
                found = target.stat()
                with suppress(PermissionError):  # who may not give it away
                    os.fchown(file.fileno(), found.st_uid, found.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(found.st_mode))
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
