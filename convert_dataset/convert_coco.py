"""Make the labels of COCO-Object. See `python convert_dataset/convert_coco.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from talk2dino.cli.data import ConvertCoco

if __name__ == "__main__":
    sys.exit(ConvertCoco.main())
