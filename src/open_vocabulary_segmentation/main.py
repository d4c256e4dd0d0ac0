"""The published evaluation command; --help explains its flags."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from talk2dino.cli.evaluate_published import EvaluatePublished

if __name__ == "__main__":
    sys.exit(EvaluatePublished.main())
