"""What would break if a person got a trace, a riddle or a secret instead of a sentence."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command_line import done, lakerunner, refused
from tests.conftest import TestDatabases

READING = [
    ("status",),
    ("quarantine", "list"),
    ("deadletter", "list"),
    ("organization", "list"),
    ("profile", "list"),
    ("lrdb", "check"),
]
CONNECTING = [
    *READING,
    ("lrdb", "migrate"),
    ("lineage", "x"),
    ("quarantine", "retry", "raw:1"),
    ("deadletter", "replay", "--all"),
    ("notify", "http"),
    ("notify", "directory", "x"),
    ("organization", "add", "x"),
]
SECRET = "hunter2"  # noqa: S105  # is meant to look like one
NOBODY = f"postgresql://bob:{SECRET}@127.0.0.1:1/lrdb"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("command", CONNECTING, ids=" ".join)
def test_without_services_each_command_says_how_to_get_them(command: tuple[str, ...]) -> None:
    message = refused(*command)
    assert "is not set: run `lakerunner services up`" in message
    assert message.count("\n") == 1


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize("command", READING, ids=" ".join)
def test_a_database_that_is_away_is_named_with_the_reason(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKERUNNER_DATABASE_URL", NOBODY)
    message = refused(*command)
    assert "port 1 failed: Connection refused" in message
    assert SECRET not in message


@pytest.mark.usefixtures("bare")
def test_a_database_without_the_schema_is_told_from_one_that_is_away(
    postgres: TestDatabases, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LAKERUNNER_DATABASE_URL", postgres.create_database())
    for command in READING:
        assert "run `lakerunner lrdb migrate`" in refused(*command)
    applied = done("lrdb", "migrate").splitlines()
    assert applied
    assert all(line.startswith("applied ") for line in applied)
    assert done("lrdb", "migrate") == "up to date\n"
    assert done("status") == "nothing has been notified yet\n"


@pytest.mark.usefixtures("bare")
@pytest.mark.parametrize(
    ("variable", "value", "why"),
    [
        ("LAKERUNNER_HTTP_PORT", SECRET, "valid integer"),
        ("LAKERUNNER_HTTP_PORT", "70000", "65535"),
        ("LAKERUNNER_FIRST_DATE", SECRET, "valid date"),
        ("LAKERUNNER_BOX_COUNT", "0", "greater than 0"),
        ("LAKERUNNER_KAFKA_OPTIONS", SECRET, "JSON"),
        ("LAKERUNNER_KAFKA_OPTIONS", f'{{"sasl.password": ["{SECRET}"]}}', "valid string"),
    ],
)
def test_a_setting_that_cannot_be_used_is_named_and_its_value_is_not_told(
    variable: str, value: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    message = refused("doctor")
    assert variable in message
    assert why in message
    assert SECRET not in message


@pytest.mark.usefixtures("bare")
def test_a_url_that_is_none_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKERUNNER_DATABASE_URL", f"postgres {SECRET}")
    assert SECRET not in refused("status")


def test_a_setting_in_env_counts_as_one_of_the_environment(bare: Path) -> None:
    (bare / ".env").write_text(f"LAKERUNNER_DATABASE_URL={NOBODY}\n")
    assert "Connection refused" in refused("status")


def test_help_names_every_command() -> None:
    ended = lakerunner("--help")
    assert ended.code == 0
    looking, mending = ("status", "lineage", "doctor"), ("quarantine", "deadletter", "replay", "backfill", "maintain")
    for name in (*looking, *mending, "dev", "services", "notify", "organization", "profile", "lrdb"):
        assert f" {name} " in ended.out
