"""Shared by all tests: the tiny model, made once, and a machine that asks no hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from actors.hosting import local_cluster

local_cluster.use_token()  # before anything imports ray, which reads its token mode on import

from tests import tiny_model
from tests.object_store import s3_server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-weight Llama of four layers with its ChatML tokenizer."""
    return tiny_model.make_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def tokenizer():
    """A test's own: whoever changes its template changes it for no other."""
    return tiny_model.make_tokenizer()


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The URL of a real S3 protocol server; clients find it by the environment."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    with s3_server() as url:
        yield url
