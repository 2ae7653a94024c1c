"""Servers as processes of their own, to be mistreated; with PROOF in the environment for longer."""

import os
import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

LONG = bool(os.environ.get("PROOF"))
