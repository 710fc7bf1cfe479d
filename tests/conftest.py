"""What every test file shares. Nothing here imports torch: without `-m gpu`, GPUs are hidden before it is imported."""

import os
import re

import pytest
from helpers import draw_alone, ok


def pytest_configure(config):
    """Tests of CPUs see no GPU: only a run that selects the marker gpu does."""
    if not re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr", "") or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture
def undrawn(monkeypatch):
    """No figure is drawn, for tests of the numbers alone."""
    draw_alone(monkeypatch)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The tiny data set of stages.make_tiny, to be read only: folders data and made."""
    from stages import make_tiny

    return make_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def finished_stage(tiny):
    """finished_stage(command): the folder that a stage of stages.SCRIPTS has written, run once without a fault."""
    from stages import call, settings

    def run(command):
        folder = tiny / "done" / command
        if not folder.exists():
            ok(call(command, settings(command, tiny / "data", tiny / "made", folder)))
        return folder

    return run
