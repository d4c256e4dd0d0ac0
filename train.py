"""Train a projection on extracted features. See `python train.py --help`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from talk2dino.cli.train import Train

if __name__ == "__main__":
    sys.exit(Train.main())
