"""What more than one script of the déjà vu test must agree on. Utilities never parse arguments and
never print."""

import os
import sys

if "matplotlib" not in sys.modules:  # a notebook has its own
    # figures are files; the backend that the caller names may not be installed here
    os.environ["MPLBACKEND"] = "agg"
