"""Tests of the package they lie beside, with the environment's other packages."""

import os
import sys
from pathlib import Path

# Before any installed package, here and in every process that is started: an environment may hold
# another checkout's.
_SOURCES = str(Path(__file__).resolve().parents[1] / "src")
sys.path.insert(0, _SOURCES)
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [_SOURCES, os.environ.get("PYTHONPATH")]))
