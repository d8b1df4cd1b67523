"""docs/configuration.md: a row for each setting, as the code declares it."""

from __future__ import annotations

from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings

from lakerunner_dagster.lake.settings import (
    BoxPolicy,
    CompactionPolicy,
    HistoryPolicy,
    Limits,
    MaintenancePolicy,
    RollupPolicy,
    Settings,
    meaning_of,
    variable_of,
)

PAGE = Path(__file__).parents[2] / "docs" / "configuration.md"


def rows(group: type[BaseSettings]) -> list[str]:
    """The lines of a group's table."""
    out = []
    for name, field in group.model_fields.items():
        default = field.default
        shown = "" if default is None or default == {} or isinstance(default, SecretStr) else f"`{default}`"
        out.append(f"| `{variable_of(group, name)}` | {shown} | {meaning_of(group, name)} |")
    return out


def test_a_setting_that_changes_without_its_docs() -> None:
    written = [line for line in PAGE.read_text().splitlines() if line.startswith("| `LAKERUNNER_")]
    groups = (Settings, BoxPolicy, RollupPolicy, CompactionPolicy, MaintenancePolicy, HistoryPolicy, Limits)
    declared = [row for group in groups for row in rows(group)]
    assert written == declared
