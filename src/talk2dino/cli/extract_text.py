"""`text_features_extraction.py`: captions in, the same file with text features out."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from talk2dino.cli.entry import DONE
from talk2dino.cli.extract import ExtractionCommand
from talk2dino.cli.flags import add_flags, from_flags

if TYPE_CHECKING:
    from talk2dino.features.job import Job


class ExtractText(ExtractionCommand):
    """Extract text features of the captions with a frozen text encoder."""

    script = "text_features_extraction.py"
    example = "--ann_path ../coco2014_b14/val.pth"

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the published flags and ours."""
        cls.own_flags(parser, "ann_path")
        settings = "features.text:TextSettings"
        dense = ("dense=extract_dense_out", "second_last=extract_second_last_dense_out")
        names = ("model", "weights=text_weights", "device", "batch_size", *dense)
        add_flags(parser, settings, *names)
        cls.output_flags(parser, settings, n_shards=10)

    def check(self) -> Job:
        """Refuse wrong arguments; take over unfinished work."""
        from talk2dino.features.captions import CaptionInput
        from talk2dino.features.text import TextExtraction, TextSettings

        extraction = TextExtraction(from_flags(TextSettings, self))
        return self.job(CaptionInput(self.ann_path, need_images=False), extraction)

    def run(self, job: Job) -> int:
        """Encode split after split."""
        self.extract(job)
        return DONE


main = ExtractText.main
