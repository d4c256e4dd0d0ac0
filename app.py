"""Segment pictures in the browser. See `python app.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from talk2dino.cli.app import App

if __name__ == "__main__":
    sys.exit(App.main())
