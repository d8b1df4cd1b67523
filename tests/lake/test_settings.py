"""Settings are what the environment and ``.env`` say now, and are read again only where these have changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from lakerunner_dagster.lake.errors import ConfigurationError
from lakerunner_dagster.lake.settings import BoxPolicy, Settings


@pytest.fixture(autouse=True)
def _directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LAKERUNNER_ACTIVE_RUNS", raising=False)


def test_what_has_not_changed_is_not_read_again() -> None:
    assert Settings.current() is Settings.current()
    assert Settings.current() == Settings()
    assert BoxPolicy.current() == BoxPolicy()


def test_a_variable_that_is_set_or_unset_counts_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    unset = Settings.current().active_runs
    monkeypatch.setenv("LAKERUNNER_ACTIVE_RUNS", str(unset + 1))
    assert Settings.current().active_runs == unset + 1
    monkeypatch.delenv("LAKERUNNER_ACTIVE_RUNS")
    assert Settings.current().active_runs == unset


def test_a_file_that_comes_changes_or_is_another_directorys_counts_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    unset = Settings.current().active_runs
    for number in (unset + 1, unset + 2):
        (tmp_path / "new").write_text(f"LAKERUNNER_ACTIVE_RUNS={number}")
        (tmp_path / "new").rename(tmp_path / ".env")
        assert Settings.current().active_runs == number
    monkeypatch.chdir("/")
    assert Settings.current().active_runs == unset


def test_what_cannot_be_used_is_refused_every_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAKERUNNER_ACTIVE_RUNS", "many")
    for _ in range(2):
        with pytest.raises(ConfigurationError, match="LAKERUNNER_ACTIVE_RUNS"):
            Settings.current()
