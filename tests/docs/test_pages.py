"""The pages beside the code: what they name is there, and what is there is named."""

from __future__ import annotations

import importlib
import importlib.util
import re
import textwrap
from pathlib import Path

import pytest
import typer
import yaml  # type: ignore[import-untyped]
from dagster._config import process_config
from dagster._core.instance.config import dagster_instance_config_schema
from typer.main import get_command

from lakerunner_dagster.cli import app
from lakerunner_dagster.lake.bus import TOPICS
from lakerunner_dagster.lake.segments.columns import FIXED_COLUMNS, OVERFLOW
from lakerunner_dagster.lake.settings import (
    BoxPolicy,
    CompactionPolicy,
    HistoryPolicy,
    Limits,
    MaintenancePolicy,
    RollupPolicy,
    Settings,
    variable_of,
)
from lakerunner_dagster.lake.signals import SIGNALS, Signal
from lakerunner_dagster.lake.telemetry.series import RESOURCE_KEYS
from tests.docs.blocks import configurations
from tests.lake.hostile.inputs import DEAD, RAW

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def page(name: str) -> str:
    return (ROOT / "docs" / name).read_text()


def words(text: str) -> set[str]:
    """What is quoted as code, with `a`, `_b` short for `a` and what has `_b` in place of its last part."""
    found: set[str] = set()
    before = ""
    for quoted in re.findall(r"`([^`\n]+)`", text):
        whole = before.rpartition("_")[0] + quoted if quoted.startswith("_") else quoted
        found.add(whole)
        before = whole
    return found


@pytest.mark.parametrize("signal", Signal)
def test_a_column_that_the_contract_does_not_name(signal: Signal) -> None:
    assert {*FIXED_COLUMNS[signal].names, OVERFLOW} <= words(page("contract.md"))


def test_a_topic_table_or_series_key_that_the_contract_does_not_name() -> None:
    text = page("contract.md")
    signals = re.compile(r"`(\S+)\.logs(\S*)`, `\.metrics\S*`, `\.traces\S*`")
    shortened = signals.sub(r"`\1.logs\2` `\1.metrics\2` `\1.traces\2`", text)
    assert set(TOPICS) <= words(shortened)
    assert {spec.segment_table for spec in SIGNALS.values()} <= words(text)
    assert all(key in text for key in RESOURCE_KEYS)


def test_a_reason_that_operations_does_not_explain() -> None:
    reasons = {raw.reason for raw in RAW if raw.reason} | {dead.reason for dead in DEAD}
    rejected = {reason for raw in RAW for reason in raw.rejected}
    assert reasons | rejected <= words(page("operations.md"))


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_command_that_is_named_and_is_not_there(path: Path) -> None:
    for command in re.findall(r"(?:^|`|\| )lakerunner ([a-z ]+)", path.read_text(), re.MULTILINE):
        found = get_command(app)
        for name in command.split():
            if not isinstance(found, typer.core.TyperGroup):
                break
            assert name in found.commands, f"lakerunner {command}"
            found = found.commands[name]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_setting_that_is_named_and_is_not_there(path: Path) -> None:
    groups = (Settings, BoxPolicy, RollupPolicy, CompactionPolicy, MaintenancePolicy, HistoryPolicy, Limits)
    known = {variable_of(group, name) for group in groups for name in group.model_fields}
    named = set(re.findall(r"LAKERUNNER_[A-Z_]*[A-Z]\b", path.read_text()))
    assert named - {"LAKERUNNER_LIMIT"} <= known


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_link_that_leads_nowhere(path: Path) -> None:
    for target in re.findall(r"(?<!!)\[[^]]*\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
        assert (path.parent / target).exists(), target


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_a_block_of_yaml_that_is_none(path: Path) -> None:
    for block in re.findall(r"^( *)```yaml\n(.*?)^ *```", path.read_text(), re.DOTALL | re.MULTILINE):
        assert yaml.safe_load(textwrap.dedent(block[1])), block


@pytest.mark.parametrize("where", ["One machine", "Kubernetes", "ECS", "Celery"])
def test_a_deployment_that_dagster_would_refuse(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    configured = configurations()[where]
    result = process_config(dagster_instance_config_schema(), configured)
    assert result.success, result.errors
    launcher = configured["run_launcher"]
    for name in re.findall(r"'env': '(\w+)'", str(launcher)):
        monkeypatch.setenv(name, "of the test")
    if importlib.util.find_spec(launcher["module"].partition(".")[0]) is None:
        pytest.skip(f"needs {launcher['module']}, which make setup installs")
    kind = getattr(importlib.import_module(launcher["module"]), launcher["class"])
    result = process_config(kind.config_type(), launcher["config"])
    assert result.success, result.errors
