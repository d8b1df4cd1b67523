"""The directory behind a local bucket: its ordinary files in the order of their keys, and no way out of it.

What belongs here: what a directory needs beyond an object store, that is order and safety. What does not: reading and
writing (``store``, through obstore, which follows symbolic links).
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from lakerunner_dagster.lake.errors import ConfigurationError, InputError, ObjectMissing, StoreDenied, StoreUnavailable

if TYPE_CHECKING:
    from collections.abc import Iterator

UPLOADING = re.compile(r"#\d+$")
"""How obstore names a file that it is still writing."""

DRIVE = re.compile(r"[A-Za-z][:|]$")
"""What obstore takes for a Windows drive, and so for a directory, at the end of a path."""

NAME_BYTES = 255
"""Longest file name, in bytes, on the usual file systems."""


@dataclass(frozen=True, slots=True)
class PlainFile:
    """An ordinary file below the root; ``size`` in bytes, ``modified_ms`` in epoch ms."""

    key: str
    size: int
    modified_ms: int


class PlainFiles:
    """The ordinary files of one directory: symbolic links, devices and pipes in it are not there for us.

    Who may write into the directory is trusted not to put a link in place between our look and obstore's.
    """

    def __init__(self, root: str) -> None:
        """ConfigurationError unless ``root`` is an absolute path, StoreUnavailable while nothing is there."""
        if not Path(root).is_absolute():
            raise ConfigurationError(f"directory {root!r} of a local bucket is not absolute: give its full path")
        if not Path(root).is_dir():
            raise StoreUnavailable(f"directory {root} of a local bucket is not there: create or mount it")
        self.root = Path(root).resolve()

    def admit(self, key: str) -> None:
        """InputError when no file of ours can be called that; ObjectMissing when a symbolic link stands in its path."""
        if UPLOADING.search(key) or DRIVE.search(key):
            raise InputError("bad_key", f"object key {key!a} ends as no file of a local bucket may: rename it")
        elements = key.split("/")
        if any(len(element.encode()) > NAME_BYTES for element in elements):
            raise InputError(
                "bad_key", f"object key {key!a} has an element of more than {NAME_BYTES} bytes: shorten it"
            )
        path = self.root
        for element in elements:
            path /= element
            if path.is_symlink():
                raise ObjectMissing(f"{path} is a symbolic link, which is not followed: put the file itself there")

    def require(self, key: str) -> None:
        """As ``admit``, and ObjectMissing unless an ordinary file is there; StoreDenied when we may not read it."""
        self.admit(key)
        path = self.root / key
        try:
            mode = path.lstat().st_mode
        except (FileNotFoundError, NotADirectoryError) as error:
            if not self.root.is_dir():
                raise StoreUnavailable(f"directory {self.root} of a local bucket is gone: mount it again") from error
            raise ObjectMissing(f"{path} is not there") from error
        except OSError as error:
            raise StoreUnavailable(f"{path}: {error.strerror}") from error
        if not stat.S_ISREG(mode):
            raise ObjectMissing(f"{path} is not an ordinary file")
        if not os.access(path, os.R_OK):
            raise StoreDenied(f"{path} may not be read: give this process the right to")

    def walk(self, prefix: str, after: str) -> Iterator[PlainFile]:
        """The files below ``prefix`` with keys greater than ``after``, in the order of an object store's listing.

        What vanishes meanwhile is passed over. Directories that cannot be read are named in a StoreDenied at the end.
        """
        if prefix:
            self.admit(prefix)
        if not self.root.is_dir():
            raise StoreUnavailable(f"directory {self.root} of a local bucket is gone: mount it again")
        unreadable: list[str] = []
        # A stack of keys, directories ending in "/": in the order of the whole key, "a-b" comes before "a/b".
        waiting = [f"{prefix}/" if prefix else ""]
        while waiting:
            key = waiting.pop()
            try:
                if not key or key.endswith("/"):
                    waiting.extend(sorted(self._entries(key, after), reverse=True))
                else:
                    status = (self.root / key).lstat()
                    yield PlainFile(key=key, size=status.st_size, modified_ms=status.st_mtime_ns // 1_000_000)
            except (FileNotFoundError, NotADirectoryError):
                continue
            except OSError as error:
                unreadable.append(f"{self.root / key}: {error.strerror}")
        if unreadable:
            raise StoreDenied(f"not listed: {'; '.join(unreadable)}: give this process the right to read them")

    def _entries(self, directory: str, after: str) -> Iterator[str]:
        """Keys of what stands in a directory and may lead to keys greater than ``after``."""
        with os.scandir(self.root / directory) as entries:
            for entry in entries:
                key = directory + entry.name
                if entry.is_dir(follow_symlinks=False):
                    key += "/"
                    if key > after or after.startswith(key):
                        yield key
                elif entry.is_file(follow_symlinks=False) and key > after and not UPLOADING.search(key):
                    yield key
