"""`python -m talk2dino convert`: published weights of other methods to safetensors."""

import sys
from pathlib import Path

from talk2dino.cli.command import Command
from talk2dino.files import check_file, check_not_inputs, check_replaceable, check_writable

METHODS = ("ovsegmentor", "freeda")


class Convert(Command):
    """Convert another method's published weights to safetensors."""

    positional = ("method", "checkpoint", "out")
    details = {"method": {"choices": METHODS}}
    example = "ovsegmentor best_miou.pth weights/ovsegmentor_vitb"
    gone = {"--num_heads": "edit the config.json of the converted folder"}

    method: str
    """Whose weights they are."""
    checkpoint: Path
    """The published .pth file; the folder of FreeDA's bank."""
    out: Path
    """Folder for model.safetensors and config.json; FreeDA's file."""
    overwrite: bool = False
    """Replace what is there."""

    def check(self) -> None:
        from talk2dino.methods.ovsegmentor.checkpoints import CONFIG_FILE, MODEL_FILES, WEIGHTS_FILE

        if self.method == "freeda":
            self._check_bank()
            return
        check_file(self.checkpoint, "checkpoint file")
        check_not_inputs((self.out / name for name in MODEL_FILES), [self.checkpoint])
        check_replaceable(self.out, (WEIGHTS_FILE, CONFIG_FILE), self.overwrite)

    def _check_bank(self) -> None:
        from talk2dino.methods.freeda.bank import check_bank

        check_bank("freeda", str(self.checkpoint))
        if not self.checkpoint.is_dir():
            raise ValueError(
                f"{self.checkpoint}: the published bank is a folder, and this is a file."
            )
        if self.out.suffix != ".safetensors":
            raise ValueError(f"{self.out}: a bank becomes one file; name it <name>.safetensors")
        check_writable(self.out, self.overwrite)

    def run(self, found: None) -> None:
        if self.method == "freeda":
            from talk2dino.methods.freeda.bank import convert_bank

            bank = convert_bank(self.checkpoint, self.out)
            print(f"{len(bank.keys)} prototypes ({bank.metric}) in {self.out}")
            return
        from talk2dino.methods.ovsegmentor.checkpoints import convert_checkpoint, stage_of

        checkpoint, unexpected = convert_checkpoint(self.checkpoint, self.out)
        stage = stage_of(checkpoint.state)
        print(f"{checkpoint.config.name}, {stage}: {len(checkpoint.state)} tensors in {self.out}")
        if unexpected:
            print(
                f"warning: {len(unexpected)} tensors that no {checkpoint.config.name} has were "
                f"left out: {', '.join(unexpected[:8])}",
                file=sys.stderr,
            )
