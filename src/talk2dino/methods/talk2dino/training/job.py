"""One training from its arguments to its files: what `train.py` does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.text import check_text, is_bert, load_text
from talk2dino.files import content_digest, save_torch, write_text
from talk2dino.methods.talk2dino.alignment import selected_heads
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
    Batch,
    FeatureChoice,
    StoredPairs,
    choose_features,
)
from talk2dino.methods.talk2dino.training.loop import KIND, LoopSettings, TrainingRun
from talk2dino.methods.talk2dino.training.retrieval import retrieval
from talk2dino.methods.talk2dino.training.sources import (
    ImageOptions,
    check_source,
    holds_features,
    open_datasets,
)
from talk2dino.processes import Processes
from talk2dino.training.job import RunJob, RunOutputs
from talk2dino.training.run import Hooks, weights_on_cpu

SUFFIX = ".pth"
HEADS_SUFFIX = ".heads.json"


def projection_outputs(weights: Path) -> RunOutputs:
    """The files of a training that writes the plain state dict `weights`."""
    if weights.suffix != SUFFIX:
        raise ValueError(f"--out {weights}: the name of the weights must end in {SUFFIX}")
    names = (HEADS_SUFFIX, ".losses.csv", ".losses.png", SUFFIX, ".json")
    _, losses, plot, _, summary = results = tuple(weights.with_suffix(name) for name in names)
    return RunOutputs(
        complete=weights,
        unfinished=weights.with_suffix(".resume.pth"),
        summary=summary,
        losses=losses,
        plot=plot,
        lock=weights.with_suffix(".lock"),
        log=weights,
        results=results,
    )


def default_weights(recipe: str | Path, pedix: str = "") -> Path:
    """`weights/<recipe name>[_<pedix>].pth`, in the current folder."""
    ending = f"_{pedix.removeprefix('_')}" if pedix else ""
    return Path("weights") / f"{Path(recipe).stem}{ending}{SUFFIX}"


BATCH_SIZE = 256


def embed_pairs(model: Projection, pairs: StoredPairs) -> tuple[Tensor, Tensor, Tensor]:
    """Every caption, and every image that has one, in the common space.

    Args:
        model: the projection.
        pairs: with one vector per image; see `check_retrieval`.

    Returns:
        (M, D) captions, (N, D) images, and (M,) the row of each caption's image.
    """
    _, rows = pairs.caption_rows.unique(return_inverse=True)
    parts = torch.arange(len(pairs)).split(BATCH_SIZE)
    texts, images = [], torch.empty(0)
    with torch.no_grad():
        for index, batch in zip(parts, pairs.batches(parts), strict=True):
            visual, text = _embed(model, batch)
            texts.append(text)
            if not len(images):
                images = visual.new_empty((int(rows.max()) + 1, *visual.shape[1:]))
            images[rows[index].to(visual.device)] = visual
    return torch.cat(texts), images, rows


def chosen_heads(model: Projection, batch: Batch) -> Tensor:
    """(B,) head that represents each image for its own caption, before the step's update."""
    with torch.no_grad():
        return selected_heads(*_embed(model, batch))


def check_retrieval(choice: FeatureChoice) -> None:
    """Raise ValueError unless the features give one vector per caption and per image."""
    if choice.text == DENSE_TEXT or (
        choice.visual == "patch_tokens" and not choice.config.weight_attn_heads
    ):
        raise ValueError(
            "--test_dataset ranks one vector per caption and per image, "
            f"which {choice.visual} with {choice.text} are not. Leave the flag out."
        )


def check_heads_recorded(config: ProjectionConfig, choice: FeatureChoice) -> None:
    """Raise ValueError unless the training chooses a head for each caption."""
    if config.alignment_strategy != "max_score" or choice.visual != "disentangled_self_attn":
        raise ValueError(
            "--save_head_activations needs alignment_strategy: max_score and "
            f"--feature_name disentangled_self_attn: {config.alignment_strategy} on "
            f"{choice.visual} chooses no head"
        )


def _embed(model: Projection, batch: Batch) -> tuple[Tensor, Tensor]:
    return model.embed(
        batch.visual, batch.text, **batch.extras, visual_is_unit=batch.visual_is_unit
    )


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
        """Its files, beside the weights `out`."""
        return projection_outputs(self.out)

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
        if not holds_features(self.train_dataset):
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
        run.choose_heads = partial(chosen_heads, model) if self.save_heads else None
        run.test = test
        return run

    def finish(self, run: TrainingRun, weights: dict[str, Tensor]) -> None:
        if run.processes.rank == 0 and run.test is not None:
            run.model.load_state_dict(weights)
            run.retrieval = retrieval(*embed_pairs(run.model.eval(), run.test))

    def write(self, run: TrainingRun, weights: dict[str, Tensor], folder: Path) -> None:
        heads, name = run.state.heads, Path(self.out.name)
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
    choice, start = job.choice, job.recipe.model.starting_checkpoint
    encoders = (job.images.features.vision_weights, job.images.features.text_weights)
    job.check(
        (job.train_dataset, job.val_dataset, job.test_dataset, job.recipe.path, start, *encoders)
    )
    if job.save_heads:
        check_heads_recorded(job.recipe.model, choice)
    for path in (job.train_dataset, job.val_dataset, job.test_dataset):
        if path is not None:
            check_source(path, choice, job.images)
    if job.loop.train.save_best_model and job.val_dataset is None:
        raise ValueError(
            "save_best_model: true chooses by validation loss. Pass --val_dataset, "
            "or set save_best_model: false in the recipe."
        )
    if job.test_dataset is not None:
        check_retrieval(choice.for_retrieval())
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
