"""Segment your own images with free words. See `python demo.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from talk2dino.cli.segment import Segment

if __name__ == "__main__":
    sys.exit(Segment.main())
