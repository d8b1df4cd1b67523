"""A bucket of each kind of store, on a real server of its protocol."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest

from lakerunner_dagster.lake.store import BucketConfiguration
from tests.servers import azure, gcs
from tests.servers.aws import CREDENTIALS as AWS_CREDENTIALS
from tests.servers.aws import REGION, Aws
from tests.servers.azure import Azure
from tests.servers.gcs import Gcs

CLOUD_CREDENTIALS = {**AWS_CREDENTIALS, **azure.CREDENTIALS, **gcs.CREDENTIALS}
"""What is to stand in the environment of whoever uses these buckets."""

PROVIDERS = ("file", "aws", "azure", "gcp")

_numbers = itertools.count(1)


def new_bucket(provider: str, request: pytest.FixtureRequest, directory: Path) -> BucketConfiguration:
    """An empty bucket of a provider; the test is skipped where its server cannot be had."""
    return _BUCKETS[provider](f"bucket-{next(_numbers)}", request, directory)


def _file(name: str, _request: pytest.FixtureRequest, directory: Path) -> BucketConfiguration:
    (directory / name).mkdir()
    return BucketConfiguration(name, "file", endpoint=str(directory / name))


def _aws(name: str, request: pytest.FixtureRequest, _directory: Path) -> BucketConfiguration:
    server: Aws = request.getfixturevalue("aws")
    server.create_bucket(name)
    return BucketConfiguration(name, "aws", region=REGION, endpoint=server.endpoint, use_path_style=True)


def _azure(name: str, request: pytest.FixtureRequest, _directory: Path) -> BucketConfiguration:
    server: Azure = request.getfixturevalue("azure")
    server.create_container(name)
    return BucketConfiguration(name, "azure", endpoint=server.blob_endpoint)


def _gcs(name: str, request: pytest.FixtureRequest, _directory: Path) -> BucketConfiguration:
    server: Gcs = request.getfixturevalue("gcs")
    server.create_bucket(name)
    return BucketConfiguration(name, "gcp", endpoint=server.endpoint)


_BUCKETS: dict[str, Callable[[str, pytest.FixtureRequest, Path], BucketConfiguration]] = {
    "file": _file,
    "aws": _aws,
    "azure": _azure,
    "gcp": _gcs,
}
