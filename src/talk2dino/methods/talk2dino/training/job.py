"""One training from its arguments to its files: what `train.py` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.text import check_text, is_bert, load_text
from talk2dino.files import content_digest, save_torch, write_text
from talk2dino.methods.talk2dino.projection import (
    CLIPLastLayer,
    Projection,
    ProjectionConfig,
    build_projection,
    load_projection,
)
from talk2dino.methods.talk2dino.recipe import FeatureConfig, Recipe, present_settings
from talk2dino.methods.talk2dino.training.dataset import (
    DENSE_TEXT,
    FeatureChoice,
    StoredPairs,
    choose_features,
)
from talk2dino.methods.talk2dino.training.loop import KIND, LoopSettings, TrainingRun
from talk2dino.methods.talk2dino.training.retrieval import retrieval
from talk2dino.methods.talk2dino.training.sources import (
    ImageOptions,
    dataset_input,
    open_datasets,
)
from talk2dino.processes import Processes
from talk2dino.training.job import RunJob, RunOutputs
from talk2dino.training.run import Hooks, weights_on_cpu

SUFFIX = ".pth"
HEADS_SUFFIX = ".heads.json"


def default_weights(recipe: str | Path, pedix: str = "") -> Path:
    """`weights/<recipe name>[_<pedix>].pth`, in the current folder."""
    ending = f"_{pedix.removeprefix('_')}" if pedix else ""
    return Path("weights") / f"{Path(recipe).stem}{ending}{SUFFIX}"


BATCH_SIZE = 256


def embed_pairs(model: Projection, pairs: StoredPairs) -> tuple[Tensor, Tensor, Tensor]:
    """Every caption, and every image that has one, in the common space.

    Args:
        model: the projection.
        pairs: with one vector per caption and per image.

    Returns:
        (M, D) captions, (N, D) images, and (M,) the row of each caption's image.
    """
    _, rows = pairs.caption_rows.unique(return_inverse=True)
    parts = torch.arange(len(pairs)).split(BATCH_SIZE)
    texts, images = [], torch.empty(0)
    with torch.no_grad():
        for index, batch in zip(parts, pairs.batches(parts), strict=True):
            visual, text = batch.embedded(model)
            texts.append(text)
            if not len(images):
                images = visual.new_empty((int(rows.max()) + 1, *visual.shape[1:]))
            images[rows[index].to(visual.device)] = visual
    return torch.cat(texts), images, rows


@dataclass(frozen=True, kw_only=True)
class TrainJob(RunJob):
    """The arguments of one training; the recipe has the rest."""

    recipe: Recipe
    """Model, training and features sections of a file of configs/."""
    train_dataset: str
    """Feature file, feature shards, or images with captions (COCO JSON, tars)."""
    val_dataset: str | None = None
    """The same, for the validation loss."""
    test_dataset: str | None = None
    """The same, for retrieval with the final weights."""
    feature_name: str | None = None
    """Image feature (default: disentangled_self_attn, or patch_tokens where the recipe has
    weight_attn_heads); validation then uses avg_self_attn_out."""
    text_features: str | None = None
    """Text feature: ann_feats, clip_txt_out_tokens[_avg], clip_second_last_out or
    bert-base_features (default: ann_feats, or what CLIPLastLayer needs)."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """Optimiser, schedule, seed, and the recipe's train section."""
    images: ImageOptions = field(default_factory=ImageOptions)
    """How images are read when a dataset holds no features."""
    save_heads: bool = False
    """Write the head chosen for every caption in the last epoch."""

    kind = KIND

    @property
    def outputs(self) -> RunOutputs:
        """Its files, beside the weights `out`, which are a plain state dict."""
        if self.out.suffix != SUFFIX:
            raise ValueError(f"--out {self.out}: the name of the weights must end in {SUFFIX}")
        names = (HEADS_SUFFIX, ".losses.csv", ".losses.png", SUFFIX, ".json")
        _, losses, plot, _, summary = results = tuple(map(self.out.with_suffix, names))
        return RunOutputs(
            complete=self.out,
            unfinished=self.out.with_suffix(".resume.pth"),
            summary=summary,
            losses=losses,
            plot=plot,
            lock=self.out.with_suffix(".lock"),
            log=self.out,
            results=results,
        )

    @property
    def choice(self) -> FeatureChoice:
        """The features to train on."""
        return choose_features(self.recipe.model, self.feature_name, self.text_features)

    def settings(self, processes: Processes) -> dict[str, Any]:
        """See `RunJob`, as all below; they do not depend on the number of processes."""
        loop = asdict(self.loop)
        del loop["train"]
        settings = {
            **{f"model.{key}": value for key, value in asdict(self.recipe.model).items()},
            **{f"train.{key}": value for key, value in self.loop.train.as_dict().items()},
            **loop,
            "train_dataset": self.train_dataset,
            "train_dataset_digest": content_digest(self.train_dataset),
            "val_dataset": self.val_dataset,
            "val_dataset_digest": content_digest(self.val_dataset),
            "feature_name": self.choice.visual,
            "text_features": self.choice.text,
            "save_head_activations": self.save_heads,
        }
        if not dataset_input(self.train_dataset, self.images.data_dir).holds_features:
            settings |= self.images.settings()
        return settings

    def present(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {k: v for k, v in present_settings(settings).items() if k != "captions"}

    def open(self, device: torch.device, processes: Processes, hooks: Hooks) -> TrainingRun:
        choice = self.choice
        wanted = (
            (self.train_dataset, choice),
            (self.val_dataset, choice.for_validation()),
            (self.test_dataset, choice.for_retrieval()),
        )
        datasets = [None if path is None else (path, chosen) for path, chosen in wanted]
        pairs, validation, test = open_datasets(
            datasets, self.recipe, self.images, device, hooks.encoding
        )
        assert pairs is not None
        model = first_model(self.recipe.model, self.loop.seed, self.images.features).to(device)
        model.load_state_dict(processes.broadcast(weights_on_cpu(model)))
        run = TrainingRun(model, pairs, validation, self.loop, processes)
        run.records_heads = self.save_heads
        run.test = test
        return run

    def write(self, run: TrainingRun, weights: dict[str, Tensor], folder: Path) -> None:
        if run.test is not None:
            run.model.load_state_dict(weights)
            run.retrieval = retrieval(*embed_pairs(run.model.eval(), run.test))
        heads, name = run.heads, Path(self.out.name)
        if heads is not None:
            write_heads(heads, run.pairs, folder / name.with_suffix(HEADS_SUFFIX))
        save_torch(weights, folder / name)

    def summary(self, run: TrainingRun) -> dict[str, Any]:
        last = run.state.records[-1]
        return {
            "features": asdict(self.recipe.features),
            "trained_on": run.pairs.features.settings,
            "captions": len(run.pairs),
            "train_loss": last["train_loss"],
            "val_loss": last["val_loss"],
            "retrieval": asdict(run.retrieval) if run.retrieval else None,
        }


def check_job(job: TrainJob) -> None:
    """Raise ValueError or OSError for arguments that cannot work; opens no large file."""
    choice, strategy = job.choice, job.recipe.model.alignment_strategy
    start = job.recipe.model.starting_checkpoint
    encoders = (job.images.features.vision_weights, job.images.features.text_weights)
    job.check(
        (job.train_dataset, job.val_dataset, job.test_dataset, job.recipe.path, start, *encoders)
    )
    if job.save_heads and (strategy != "max_score" or choice.visual != "disentangled_self_attn"):
        raise ValueError(
            "--save_head_activations needs alignment_strategy: max_score and --feature_name "
            f"disentangled_self_attn: {strategy} on {choice.visual} chooses no head"
        )
    for path in (job.train_dataset, job.val_dataset, job.test_dataset):
        if path is not None and not dataset_input(path, job.images.data_dir).holds_features:
            job.images.extractions(choice, "cpu")
    if job.loop.train.save_best_model and job.val_dataset is None:
        raise ValueError(
            "save_best_model: true chooses by validation loss. Pass --val_dataset, "
            "or set save_best_model: false in the recipe."
        )
    tested = choice.for_retrieval()
    per_patch = tested.visual == "patch_tokens" and not tested.config.weight_attn_heads
    if job.test_dataset is not None and (tested.text == DENSE_TEXT or per_patch):
        raise ValueError(
            "--test_dataset ranks one vector per caption and per image, which "
            f"{tested.visual} with {tested.text} are not. Leave the flag out."
        )
    _check_start(job)


def _check_start(job: TrainJob) -> None:
    """Raise unless what the training starts from can be loaded."""
    start = job.recipe.model.starting_checkpoint
    if start is not None and not start.startswith("seeded:") and not Path(start).is_file():
        raise FileNotFoundError(f"starting_checkpoint: {start}: no such file")
    if start is None and job.recipe.model.model_class == "CLIPLastLayer":
        encoder = job.images.features
        check_text(encoder.text_model, encoder.text_weights)
        if is_bert(encoder.text_model):
            raise ValueError(
                f"CLIPLastLayer starts from CLIP's last layer; text_model {encoder.text_model} is "
                "no CLIP"
            )


def first_model(config: ProjectionConfig, seed: int, text: FeatureConfig) -> Projection:
    """The projection before training: `starting_checkpoint`, or drawn from the seed.

    CLIPLastLayer starts from the last layer of the text encoder of the `features` section.
    """
    if config.starting_checkpoint is not None:
        return load_projection(config, config.starting_checkpoint, "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_projection(config)
    if isinstance(model, CLIPLastLayer):
        encoder = load_text(text.text_model, text.text_weights)
        model.copy_from(encoder.model)
    return model


def write_heads(heads: Tensor, pairs: StoredPairs, path: Path) -> None:
    """JSON: annotation id -> image id and the head chosen for the caption in the last epoch."""
    chosen = {
        str(annotation["id"]): {"image_id": annotation["image_id"], "head": head}
        for annotation, head in zip(pairs.features.annotations, heads.tolist(), strict=True)
    }
    write_text(path, json.dumps(chosen) + "\n")
