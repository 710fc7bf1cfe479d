"""What every test file shares. Nothing here imports torch: without `-m gpu`, GPUs are hidden before it is imported."""

import os
import re


def pytest_configure(config):
    """Tests of CPUs see no GPU: only a run that selects the marker gpu does."""
    if not re.search(r"(?<!not )\bgpu\b", config.getoption("markexpr", "") or ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
