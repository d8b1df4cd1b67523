"""A process that opens a platform of the tests, launches a run of ``waiting``, and waits to be killed."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

from tests.launcher.platform import Place, code_of, launching


def main() -> None:
    directory = Path(sys.argv[1])
    place = Place(directory / "home", directory / "code", directory / "marks")
    with launching(place, code_of(place)) as running:
        run = running.run("waiting")
        new = place.marks / ".daemon"
        new.write_text(run)
        new.rename(place.marks / "daemon")
        threading.Event().wait()


if __name__ == "__main__":
    main()
