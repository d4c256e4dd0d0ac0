"""The page on a server of the Hugging Face Hub; the variable TALK2DINO_MODEL names its model."""

import os
import sys

from talk2dino.cli.app import main

if __name__ == "__main__":
    model = os.environ.get("TALK2DINO_MODEL", "vitb")
    sys.exit(main(["--model", model, "--server_name", "0.0.0.0"]))
