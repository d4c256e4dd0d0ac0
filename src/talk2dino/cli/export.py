"""`python -m talk2dino export`: a model as ONNX files."""

from pathlib import Path

from talk2dino.cli.command import Command
from talk2dino.files import check_replaceable

FORMATS = ("onnx",)


class Export(Command):
    """Write a model as ONNX files, for devices without PyTorch."""

    details = {"format": {"choices": FORMATS}}
    example = "--format onnx --model toy --output exported/toy"
    after_interrupt = "complete files are kept; --overwrite makes them again"

    model: str
    """Toy, vitb, vitl, dinov3_vitb, dinov3_vitl, a folder, a file, or owner/name."""
    output: Path
    """Folder for the files."""
    format: str = "onnx"
    """Kind of files."""
    config: str | None = None
    """YAML: recipe of a projection's file that does not tell it."""
    overwrite: bool = False
    """Replace existing files."""

    def check(self) -> None:
        from talk2dino.methods.talk2dino.export import FILES, check_installed

        check_installed()
        check_replaceable(self.output, FILES, self.overwrite)

    def run(self, found: None) -> None:
        """Load, export and compare."""
        from talk2dino.methods.talk2dino.api import Talk2DINO
        from talk2dino.methods.talk2dino.export import FILES, export_onnx

        print(f"loading {self.model}", flush=True)
        model = Talk2DINO.from_pretrained(self.model, "cpu", config=self.config)
        print("exporting", flush=True)
        errors = export_onnx(model, self.output, self.overwrite)
        for path in (self.output / name for name in FILES):
            print(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)")
        if errors:
            worst = max(errors.values())
            print(f"onnxruntime agrees with PyTorch: relative error {worst:.1e} at most")
        else:
            print("note: not compared with PyTorch, because onnxruntime is not installed")
