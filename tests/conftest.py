"""What tests share. Every test draws with the library that the simulator chooses; that comes before mujoco does."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import llarva.tabletop.gl  # noqa: F401

PLACES = os.pathsep.join([str(Path(__file__).parent), *filter(None, sys.path)])  # where other processes find modules


@pytest.fixture
def ray() -> Iterator[object]:
    """A Ray cluster of this machine, whose workers find the tests' modules."""
    module = pytest.importorskip("ray")
    environment = {"env_vars": {"PYTHONPATH": PLACES}}
    module.init(num_cpus=2, include_dashboard=False, log_to_driver=False, runtime_env=environment)
    yield module
    module.shutdown()
