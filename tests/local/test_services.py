"""The embedded services together: one holder, ``.env`` for the others, and nothing left behind by a killed one."""

from __future__ import annotations

import os
import resource
import signal
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import psycopg
import pytest
from dotenv import dotenv_values
from hypothesis import given, settings
from hypothesis import strategies as st

from lakerunner_dagster.lake.bus import TOPICS, Bus
from lakerunner_dagster.lake.model import Message
from lakerunner_dagster.lake.settings import Settings
from lakerunner_dagster.local import services
from lakerunner_dagster.local.env_file import EnvBlock
from lakerunner_dagster.local.errors import AlreadyRunning, ServiceFailed
from lakerunner_dagster.local.services import LocalServices, RunningServices
from tests.waiting import DEADLINE_SECONDS, eventually

USERS_LINES = "# mine\nLAKERUNNER_HTTP_PORT=9000\nOTHER='x # y'"


@pytest.fixture
def project(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty project directory, which is also the current one, without settings in the environment."""
    for name in [name for name in os.environ if name.startswith("LAKERUNNER_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    with tempfile.TemporaryDirectory(prefix="lakerunner-test-") as name:
        monkeypatch.chdir(name)
        yield Path(name)
        services.down(Path(".lakerunner"))


def bus_of(running: RunningServices) -> Bus:
    return Bus(running.env["LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS"], partitions=1, replication=1)


def write_something(running: RunningServices) -> None:
    with psycopg.connect(running.env["LAKERUNNER_DATABASE_URL"]) as conn:
        conn.execute("CREATE TABLE kept AS SELECT 42 AS answer")
    (running.bucket / "object").write_text("kept")


def check_kept(running: RunningServices) -> None:
    with psycopg.connect(running.env["LAKERUNNER_DATABASE_URL"]) as conn:
        assert conn.execute("SELECT answer FROM kept").fetchone() == (42,)
    assert (running.bucket / "object").read_text() == "kept"


def below(process_id: int) -> list[psutil.Process]:
    return [process for process in psutil.Process(process_id).children() if process.status() != psutil.STATUS_ZOMBIE]


def test_what_others_need_is_in_env_and_the_users_lines_stay(project: Path) -> None:
    env_file = project / ".env"
    env_file.write_text(USERS_LINES)
    local = LocalServices(Settings(), durable=False)
    running = local.start()
    try:
        assert env_file.read_text().startswith(USERS_LINES)
        assert dotenv_values(env_file) == {"LAKERUNNER_HTTP_PORT": "9000", "OTHER": "x # y", **running.env}
        for_others = Settings()
        assert for_others.home == project / ".lakerunner"
        assert (for_others.http_port, for_others.kafka_partitions, for_others.kafka_replication) == (9000, 1, 1)
        assert running.env["LAKERUNNER_DAGSTER_DATABASE_URL"].startswith("postgresql+psycopg2://")
        bus = bus_of(running)
        bus.ensure_topics()
        bus.produce([Message(topic, "key", {}) for topic in TOPICS], DEADLINE_SECONDS)
        assert {partition for _, partition in bus.consumer("group", TOPICS)._existing()} == {0}
        bus.close()
        assert local.failure() is None
    finally:
        local.stop()
    assert env_file.read_text() == USERS_LINES + "\n"


def test_a_second_start_goes_on_with_the_data_that_is_there(project: Path) -> None:
    ids = set()
    for number in range(2):
        local = LocalServices(Settings(), durable=False)
        running = local.start()
        if number == 0:
            write_something(running)
        check_kept(running)
        bus = bus_of(running)
        ids.add(bus.cluster_id())
        bus.close()
        local.stop()
        assert not (project / ".env").exists()
    assert len(ids) == 2


def test_two_at_once_says_so(project: Path) -> None:
    local = LocalServices(Settings(), durable=False)
    local.start()
    try:
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            LocalServices(Settings(), durable=False).start()
        with pytest.raises(AlreadyRunning, match=str(os.getpid())):
            services.up(project / ".lakerunner")
        with pytest.raises(AlreadyRunning, match="another directory"):
            LocalServices(Settings(home=project / "other")).start()
        assert services.status(project / ".lakerunner").process_id == os.getpid()
        assert (project / ".env").exists(), "who is refused does not touch what others wrote"
    finally:
        local.stop()


def test_the_background_holder_comes_and_goes(project: Path) -> None:
    running = services.up(Path(".lakerunner"))
    write_something(running)
    state = services.status(Path(".lakerunner"))
    assert state.process_id is not None
    assert state.env == running.env
    children = below(state.process_id)
    assert len(children) == 2
    assert services.down(Path(".lakerunner"))
    assert not (project / ".env").exists()
    eventually(lambda: not any(child.is_running() for child in children), "nothing is left running")
    assert not services.down(Path(".lakerunner"))
    assert services.status(Path(".lakerunner")) == services.ServicesStatus(None, {})


def test_a_killed_holder_leaves_nothing_that_the_next_start_minds(project: Path) -> None:
    running = services.up(Path(".lakerunner"))
    write_something(running)
    holder = services.status(Path(".lakerunner")).process_id
    assert holder is not None
    children = below(holder)
    os.kill(holder, signal.SIGKILL)
    eventually(lambda: services.status(Path(".lakerunner")).process_id is None, "the lock is free")
    stale = Settings()
    assert stale.database_url is not None, "the killed holder's .env is still there"

    local = LocalServices(stale, durable=False)
    again = local.start()
    assert not any(child.is_running() for child in children)
    assert again.env.keys() == running.env.keys(), "what a dead holder wrote is not taken for configured"
    check_kept(again)
    local.stop()
    assert not (project / ".env").exists()


def test_down_clears_what_a_killed_holder_wrote(project: Path) -> None:
    EnvBlock(project / ".env").write({"LAKERUNNER_HOME": str(project / ".lakerunner"), "LAKERUNNER_DATABASE_URL": "x"})
    assert not services.down(Path(".lakerunner"))
    assert not (project / ".env").exists()


def test_what_the_user_configured_is_not_started(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKERUNNER_DATABASE_URL", "postgresql://mine/lrdb")
    monkeypatch.setenv("LAKERUNNER_DAGSTER_DATABASE_URL", "postgresql+psycopg2://mine/dagster")
    (project / ".env").write_text("LAKERUNNER_KAFKA_PARTITIONS=3\n")
    local = LocalServices(Settings(), durable=False)
    running = local.start()
    try:
        assert running.env.keys() == {
            "LAKERUNNER_HOME",
            "LAKERUNNER_KAFKA_BOOTSTRAP_SERVERS",
            "LAKERUNNER_KAFKA_PARTITIONS",
            "LAKERUNNER_KAFKA_REPLICATION",
        }
        assert not (project / ".lakerunner" / "postgres").exists()
        assert len(bus_of(running).consumer("group", TOPICS[:1])._existing()) == 3
    finally:
        local.stop()


def test_a_service_that_ends_by_itself_is_noticed(project: Path) -> None:
    local = LocalServices(Settings(), durable=False)
    others = {child.pid for child in below(os.getpid())}  # the tests' own servers
    local.start()
    try:
        started = [child for child in below(os.getpid()) if child.pid not in others]
        [kafka] = [child for child in started if "lakerunner.deadletter" in child.cmdline()]
        kafka.kill()
        eventually(lambda: local.failure() is not None, "the end of Kafka is noticed")
        assert "Kafka has ended" in (local.failure() or "")
    finally:
        local.stop()
    assert not (project / ".env").exists()


def test_a_start_that_fails_leaves_nothing_running(project: Path) -> None:
    (project / ".lakerunner" / "kafka.log").mkdir(parents=True)
    with pytest.raises(IsADirectoryError):
        LocalServices(Settings(), durable=False).start()
    assert not (project / ".env").exists()
    assert services.status(Path(".lakerunner")).process_id is None
    assert not [process for process in psutil.process_iter() if str(project) in " ".join(_command(process))]


def test_a_background_start_that_fails_says_why(project: Path) -> None:
    (project / ".lakerunner").mkdir()
    (project / ".lakerunner" / "bucket").write_text("not a directory")
    with pytest.raises(ServiceFailed, match=r"(?s)did not start: .*File exists.*bucket"):
        services.up(Path(".lakerunner"))
    assert services.status(Path(".lakerunner")).process_id is None


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


TEXTS = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="\u2028\u2029\x85"), max_size=30)


@settings(max_examples=100, deadline=None)
@given(
    lines=st.lists(TEXTS.filter(lambda line: "lakerunner services" not in line)),
    values=st.dictionaries(st.from_regex(r"LAKERUNNER_[A-Z]{1,8}", fullmatch=True), TEXTS, min_size=1),
)
def test_any_users_lines_and_any_values_survive(
    tmp_path_factory: pytest.TempPathFactory, lines: list[str], values: dict[str, str]
) -> None:
    path = tmp_path_factory.mktemp("env") / ".env"
    text = "".join(f"{line}\n" for line in lines)
    if text:
        path.write_text(text, newline="")
    block = EnvBlock(path)
    block.write({"LAKERUNNER_OLD": "1"})
    block.write(values)
    assert block.read() == values
    block.remove()
    assert (path.read_text() if path.exists() else "") == text


@contextmanager
def _disk_with(free_bytes: int) -> Iterator[None]:
    """No file of this process grows beyond so many bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_takes_none_of_the_users_lines(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(USERS_LINES)
    block = EnvBlock(path)
    with _disk_with(len(USERS_LINES) // 2), pytest.raises(OSError, match="File too large"):
        block.write({"LAKERUNNER_OLD": "1"})
    assert path.read_text() == USERS_LINES
    block.write({"LAKERUNNER_OLD": "1"})
    with_block = path.read_text()
    with _disk_with(len(USERS_LINES) // 2), pytest.raises(OSError, match="File too large"):
        block.remove()
    assert path.read_text() == with_block
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("users_lines", [USERS_LINES + "\n", ""])
def test_a_link_stays_one_and_its_file_as_open_as_it_was(tmp_path: Path, users_lines: str) -> None:
    kept = tmp_path / "kept.env"
    kept.write_text(users_lines)
    kept.chmod(0o640)
    link = tmp_path / ".env"
    link.symlink_to("kept.env")
    block = EnvBlock(link)
    block.write({"LAKERUNNER_OLD": "1"})
    assert block.read() == {"LAKERUNNER_OLD": "1"}
    block.remove()
    assert link.readlink() == Path("kept.env")
    assert kept.read_text() == users_lines
    assert stat.S_IMODE(kept.stat().st_mode) == 0o640


def test_a_new_file_is_for_its_owners_eyes_only(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    EnvBlock(path).write({"LAKERUNNER_OLD": "1"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    EnvBlock(path).remove()
    assert list(tmp_path.iterdir()) == []
