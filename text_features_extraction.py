"""Extract CLIP features of captions. See `python text_features_extraction.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from talk2dino.cli.extract import ExtractText

if __name__ == "__main__":
    sys.exit(ExtractText.main())
