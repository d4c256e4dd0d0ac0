"""The page on a server of the Hugging Face Hub; the variable TALK2DINO_MODEL names its model."""

import os
import sys

from talk2dino.cli.app import App

if __name__ == "__main__":
    model = os.environ.get("TALK2DINO_MODEL", "vitb")
    sys.exit(App.main(["--model", model, "--server_name", "0.0.0.0"]))
