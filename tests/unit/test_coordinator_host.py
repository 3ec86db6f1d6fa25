"""The process that starts a coordinator is understood whatever Ray prints in it."""

from __future__ import annotations

from pathlib import Path

import pytest

from actors.cluster.http_options import HttpOptions
from actors.cluster.launch import Launch
from actors.hosting import coordinator_host
from proxykd.errors import ResourceError

NOISE = """
import os
import ray

def init(**_):
    os.write(1, b"(raylet) a node has died\\n")
    raise ConnectionError("nobody is there")

ray.init = init
"""
"""Ray does so when a node is lost at that moment, which no test can time."""


def test_what_ray_prints_is_no_reply(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(NOISE)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{Path(coordinator_host.__file__).parents[2]}")
    launch = Launch(str(tmp_path), "services.rest.deployments:ServeDeployer", HttpOptions())
    with pytest.raises(ResourceError, match=r"no Ray cluster answers at 127\.0\.0\.1:9: nobody is there"):
        coordinator_host.start("127.0.0.1:9", launch)
