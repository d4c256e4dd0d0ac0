"""One pretraining from its arguments to its folder: what `talk2dino pretrain` does."""

import itertools
import re
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.checkpoints import check_layout, read_state_dict
from talk2dino.backbones.seeded import PRETRAINED, require_transformers
from talk2dino.config import reason
from talk2dino.files import content_digest
from talk2dino.methods.ovsegmentor.checkpoints import (
    CONFIG_FILE,
    MODEL_FILES,
    TOKENIZER_FOLDER,
    UNFINISHED_FILE,
    WEIGHTS_FILE,
    check_source,
    load_stage1,
    read_checkpoint,
    write_model,
)
from talk2dino.methods.ovsegmentor.config import SECTIONS, OVSegmentorConfig, PretrainingRecipe
from talk2dino.methods.ovsegmentor.data.rows import Rows
from talk2dino.methods.ovsegmentor.data.samples import PretrainingSamples
from talk2dino.methods.ovsegmentor.data.words import find_lemmas
from talk2dino.methods.ovsegmentor.model import OVSegmentor
from talk2dino.methods.ovsegmentor.pretraining.loop import PretrainingRun
from talk2dino.methods.ovsegmentor.text import TOY, Tokenizer, load_tokenizer, toy_tokenizer
from talk2dino.methods.ovsegmentor.vision import load_dino
from talk2dino.processes import Processes
from talk2dino.progress import Progress
from talk2dino.training.job import RunJob, RunOutputs

_DINO_MODELS = {768: "vit_base_patch16_224.dino", 384: "vit_small_patch16_224.dino"}
_CAPTIONS = 10_000  # that the toy tokeniser learns its words from


def first_model(recipe: PretrainingRecipe) -> OVSegmentor:
    """The model of the recipe's stage with its first weights, in training mode, on the CPU.

    Raises:
        FileNotFoundError, ValueError: weights are absent, damaged or of another size.
        RuntimeError: they could not be downloaded.
    """
    start, config, checkpoint = recipe.start, recipe.config, None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.train.seed)
        if start.stage1:
            checkpoint = read_checkpoint(start.stage1, recipe.model)
            config = checkpoint.config
        model = OVSegmentor(config, f"stage{recipe.stage}", recipe.losses, recipe.mask_batch)
        if checkpoint:
            load_stage1(model, checkpoint.state, checkpoint.source)
        if start.dino:
            load_dino(model.img_encoder, _dino(start.dino, config.vision.width))
        if start.text:
            model.text_encoder.load_pretrained(None if start.text == PRETRAINED else start.text)
    if recipe.train.freeze_text:
        model.text_encoder.transformer.requires_grad_(False)
    return model.train()


def with_words(tokenizer: Tokenizer, config: OVSegmentorConfig, rows: Rows) -> Tokenizer:
    """The toy tokeniser with the commonest words of some captions, as many as its encoder takes."""
    counts: Counter[str] = Counter()
    for row in itertools.islice(rows.usable.tolist(), _CAPTIONS):
        counts.update(re.findall("[a-z]{2,}", rows.caption(row).lower()))
    room = config.text.vocabulary - len(tokenizer.tokenizer)
    ranked = sorted(counts, key=lambda word: (-counts[word], word))
    return Tokenizer(toy_tokenizer(ranked[:room]), config.text.positions)


def _dino(source: str, width: int) -> dict[str, Tensor]:
    if source != PRETRAINED:
        state = read_state_dict(source)
        check_layout(state, source, "DINO's own dino_*_pretrain.pth, or timm's file")
        return state
    import timm

    name = _DINO_MODELS[width]
    try:
        return timm.create_model(name, pretrained=True, num_classes=0).state_dict()
    except (OSError, ValueError, RuntimeError) as error:
        raise RuntimeError(
            f"could not load DINO's weights {name} ({reason(error)}). Give a local file as "
            "start: dino:"
        ) from error


@dataclass(frozen=True)
class PretrainingJob(RunJob):
    """The arguments of one pretraining; the recipe has the rest."""

    recipe: PretrainingRecipe
    """A file of configs/."""
    checkpoint_seconds: float = 600.0
    """Between two saves of the state within an epoch; every epoch's end is saved."""
    workers: int = 0
    """Processes that read images; the result does not depend on it."""

    @property
    def outputs(self) -> RunOutputs:
        out, names = self.out, ("pretraining.json", "losses.csv", "losses.png")
        summary, losses, plot = (out / name for name in names)
        state, lock = out / UNFINISHED_FILE, out / "lock"
        results = (summary, losses, plot, *(out / name for name in MODEL_FILES))
        return RunOutputs(out / CONFIG_FILE, state, summary, losses, plot, lock, results)

    def settings(self, processes: Processes) -> dict[str, Any]:
        recipe = self.recipe
        settings = {"model": recipe.model, "stage": recipe.stage, "compat": recipe.compat}
        settings["processes"] = processes.count
        for section in SECTIONS:
            values = asdict(getattr(recipe, section))
            settings |= {f"{section}.{key}": value for key, value in values.items()}
        settings["data.lemmas"] = find_lemmas(recipe.data.lemmas)  # auto may come to mean another
        weights = recipe.start.stage1
        if weights and (Path(weights) / WEIGHTS_FILE).is_file():
            weights = str(Path(weights) / WEIGHTS_FILE)
        for name, path in (
            ("data.metafile", recipe.data.metafile),
            ("selection.metafile", recipe.selection.metafile),
            ("start.stage1", weights),
            ("start.dino", recipe.start.dino),
        ):
            settings[f"{name} digest"] = content_digest(path)
        return settings

    def open(
        self, device: torch.device, processes: Processes, encoding: Progress
    ) -> PretrainingRun:
        """See `RunJob`.

        Raises:
            ValueError: there are fewer held-out captions than processes; see `PretrainingSamples`.
            RuntimeError: a held-out image cannot be read.
        """
        if device.type == "cuda":
            torch.cuda.set_device(device)
        recipe, stage1, chosen = self.recipe, self.recipe.start.stage1, self.recipe.selection
        folder = Path(stage1 or "") / TOKENIZER_FOLDER
        came_along = stage1 is not None and folder.is_dir()
        tokenizer = load_tokenizer(recipe.config.text, folder if came_along else None)
        samples, held_out = PretrainingSamples(recipe, tokenizer), None
        if recipe.config.text.name == TOY and recipe.stage == 1:  # it has only characters yet
            tokenizer = with_words(tokenizer, recipe.config, samples.rows)
            samples.tokenizer = tokenizer
        if chosen.metafile:
            held_out = PretrainingSamples(recipe, tokenizer, held_out=True)
            if len(held_out) < processes.count:
                raise ValueError(
                    f"selection: metafile: {chosen.metafile} holds {len(held_out)} captions that "
                    f"can be used; at least {processes.count} are needed, one for each process"
                )
        model = first_model(recipe).to(device)
        run = PretrainingRun(model, recipe, samples, held_out, processes, self.workers)
        run.judge()  # a broken image is found now, and not after an epoch
        return run

    def write(
        self, run: PretrainingRun, weights: dict[str, Tensor], folder: Path
    ) -> dict[str, Any]:
        config, source = self.recipe.config, f"pretraining, stage {self.recipe.stage}"
        tokenizer = None
        if config.text.name == TOY:  # which has no name elsewhere
            tokenizer = run.samples.tokenizer.tokenizer
            tokenizer.backend_tokenizer.no_truncation()  # the last batch left it with both,
            tokenizer.backend_tokenizer.no_padding()  # but a run that is resumed at its end not
        write_model(config, weights, folder, source, tokenizer)
        judge = self.recipe.selection.metafile
        chosen = "nothing: the last epoch" if judge is None else f"image-caption loss of {judge}"
        return {
            "steps_per_epoch": run.steps_per_epoch,
            "selected_by": chosen,
            "last": run.state.records[-1],
            "lost": run.lost,
        }


def check_job(job: PretrainingJob) -> None:
    """Raise ValueError or OSError for arguments that cannot work; opens no large file."""
    require_transformers("OVSegmentor")
    recipe, start = job.recipe, job.recipe.start
    read = (recipe.path, recipe.data.metafile, recipe.selection.metafile, start.dino)
    job.check((*read, start.stage1, start.text))
    if job.workers < 0:
        raise ValueError(f"--workers must not be negative, got {job.workers}")
    if start.stage1:
        check_source(start.stage1)
    if start.dino == PRETRAINED and recipe.config.vision.width not in _DINO_MODELS:
        raise ValueError(f"start: there are no pretrained DINO weights for {recipe.model}")
    if start.text and recipe.config.text.name == TOY:
        raise ValueError(f"start: the text encoder of {recipe.model} has no pretrained weights")
    if start.dino and start.dino != PRETRAINED and not Path(start.dino).is_file():
        raise FileNotFoundError(f"start: dino: {start.dino}: no such file")
    for name, path in (("data", recipe.data.metafile), ("selection", recipe.selection.metafile)):
        if path and Path(path).suffix in (".csv", ".tsv", ".json") and not Path(path).is_file():
            raise FileNotFoundError(f"{name}: metafile: {path}: no such file")
