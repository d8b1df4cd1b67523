"""The blocks of YAML in docs/deployment.md.

What belongs here: finding them. What does not: what is done with them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

DOCS = Path(__file__).parents[2] / "docs"


def configurations() -> dict[str, dict[str, Any]]:
    """What docs/deployment.md has of ``dagster.yaml``, by the heading under which it stands."""
    page = (DOCS / "deployment.md").read_text()
    blocks = re.findall(r"^## ([^\n]+)\n(?:(?!^## ).)*?```yaml\n(.*?)```", page, re.DOTALL | re.MULTILINE)
    return {heading: yaml.safe_load(block) for heading, block in blocks}
