"""Resources and scopes: what records inherit.

What belongs here: reading the distinct parents of a batch, refusing records for them, and the columns of attributes
that logs and spans share. What does not: the pivot itself (``attributes``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa
from opentelemetry.proto.common.v1.common_pb2 import InstrumentationScope
from opentelemetry.proto.resource.v1.resource_pb2 import Resource

from lakerunner_dagster.lake.telemetry.attributes import (
    AttributeColumns,
    AttributeGroup,
    Attributes,
    Ints,
    pivot,
    read_attributes,
)
from lakerunner_dagster.lake.telemetry.records import Records, Rejections, chosen, null_if_empty
from lakerunner_dagster.lake.telemetry.wire import reader

if TYPE_CHECKING:
    from lakerunner_dagster.lake.settings import Limits

PINNED_COLUMNS = frozenset(
    {
        "resource_customer_domain",
        "resource_file",
        "resource_k8s_cluster_name",
        "resource_k8s_namespace_name",
        "resource_service_name",
    }
)
"""Attribute columns that the query API looks segments up by, or that rows are sorted by: never in the overflow."""

SCOPE_COLUMNS = frozenset({"scope_name", "scope_version"})
"""Columns of the scope's own fields; an attribute that would be called so overflows."""


@dataclass(frozen=True, slots=True)
class Parents:
    """The distinct resources and scopes of a batch, by their positions in ``Records``."""

    resources: Attributes
    scopes: Attributes
    scope_names: pa.StringArray
    scope_versions: pa.StringArray


def read_parents(found: Records, limits: Limits) -> Parents:
    """Reads each distinct resource and scope once."""
    scopes = reader(InstrumentationScope).read(found.scopes)
    return Parents(
        resources=read_attributes(reader(Resource).read(found.resources).field("attributes"), limits),
        scopes=read_attributes(scopes.field("attributes"), limits),
        scope_names=null_if_empty(scopes.field("name")),
        scope_versions=null_if_empty(scopes.field("version")),
    )


def refuse_for_attributes(rejections: Rejections, found: Records, parents: Parents, own: Attributes) -> None:
    """Refuse records that have, or inherit, too many attributes or too large ones. ``own``: one parent a record."""
    resources, scopes = parents.resources, parents.scopes
    rejections.add(
        "too_many_attributes",
        own.too_many | resources.too_many[found.resource] | scopes.too_many[found.scope],
    )
    rejections.add(
        "value_too_large",
        own.too_large | resources.too_large[found.resource] | scopes.too_large[found.scope],
    )


def scope_columns(found: Records, parents: Parents) -> dict[str, pa.Array]:
    """``scope_name`` and ``scope_version`` of each record; NULL where empty."""
    return {
        "scope_name": chosen(found.scope, parents.scope_names),
        "scope_version": chosen(found.scope, parents.scope_versions),
    }


def attribute_columns(
    found: Records, parents: Parents, own: Attributes, accepted: Ints | None, limits: Limits
) -> AttributeColumns:
    """Columns for the records ``found``: those of the parents of ``own`` at ``accepted`` (None: all)."""
    return pivot(
        [
            AttributeGroup("resource", parents.resources, rows=found.resource),
            AttributeGroup("scope", parents.scopes, rows=found.scope),
            AttributeGroup("attr", own, rows=accepted),
        ],
        limit=limits.columns,
        reserved=SCOPE_COLUMNS,
        pinned=PINNED_COLUMNS,
    )
