"""Extract DINO features of images. See `python dino_extraction_v2.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from talk2dino.cli.extract import Extract

if __name__ == "__main__":
    sys.exit(Extract.main())
