"""One training from its arguments to its files: what `train.py` does."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.text import check_text, is_bert, load_text
from talk2dino.backbones.vision import recorded_normalisation
from talk2dino.config import FeatureConfig
from talk2dino.devices import resolve_device
from talk2dino.files import (
    atomic_files,
    atomic_path,
    check_not_inputs,
    content_digest,
    hold_lock,
    save_torch,
)
from talk2dino.methods.talk2dino.projection import (
    CLIPLastLayer,
    Projection,
    ProjectionConfig,
    build_projection,
    load_projection,
)
from talk2dino.methods.talk2dino.recipe import Recipe
from talk2dino.methods.talk2dino.training.dataset import (
    Batch,
    FeatureChoice,
    Pairs,
    StoredPairs,
    check_widths,
    choose_features,
)
from talk2dino.methods.talk2dino.training.embed import (
    check_heads_recorded,
    check_retrieval,
    chosen_heads,
    embed_pairs,
)
from talk2dino.methods.talk2dino.training.encoding import Encoders, ImageOptions, encoding_settings
from talk2dino.methods.talk2dino.training.loop import (
    Hooks,
    LoopSettings,
    StateFile,
    TrainingRun,
)
from talk2dino.methods.talk2dino.training.outputs import (
    Outputs,
    check_outputs,
)
from talk2dino.methods.talk2dino.training.retrieval import Retrieval, retrieval
from talk2dino.methods.talk2dino.training.sources import (
    check_source,
    holds_features,
    in_memory,
    open_pairs,
    warn_of_other_models,
)
from talk2dino.methods.talk2dino.training.state import (
    Checkpoint,
    load_checkpoint,
    present_settings,
)
from talk2dino.processes import Processes
from talk2dino.progress import Progress, silent
from talk2dino.training.history import EpochRecord, plot_losses, write_losses
from talk2dino.training.loggers import check_logger, open_logger
from talk2dino.training.outputs import read_summary, write_summary
from talk2dino.training.run import weights_on_cpu
from talk2dino.training.state import check_same_settings


@dataclass(frozen=True)
class TrainJob:
    """The arguments of one training; the recipe has the rest."""

    recipe: Recipe
    """Model, training and features sections of a file of configs/."""
    train_dataset: str
    """Feature file, feature shards, or images with captions (see training.sources)."""
    out: Path
    """The weights to write."""
    val_dataset: str | None = None
    """For the validation loss."""
    test_dataset: str | None = None
    """For retrieval with the final weights."""
    feature_name: str | None = None
    """Image feature; None takes what the model needs."""
    text_features: str | None = None
    """Text feature; None takes what the model needs."""
    loop: LoopSettings = field(default_factory=LoopSettings)
    """Optimiser, schedule, seed, and the recipe's train section."""
    images: ImageOptions = field(default_factory=ImageOptions)
    """How images are read when a dataset holds no features."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<i> or mps."""
    logger: str = "none"
    """none, tensorboard or wandb."""
    save_heads: bool = False
    """Write the head chosen for every caption in the last epoch."""
    overwrite: bool = False
    """Replace weights and unfinished trainings of the same name."""
    resume: bool = False
    """Continue an interrupted training; start if there is none."""
    checkpoint_seconds: float = 60.0
    """Time between two saves of the state within an epoch."""
    command: str = ""
    """What the user typed, for the record."""

    @property
    def choice(self) -> FeatureChoice:
        """The features to train on."""
        return choose_features(self.recipe.model, self.feature_name, self.text_features)


@dataclass(frozen=True)
class TrainResult:
    """What a training ends with."""

    records: list[EpochRecord]
    best_epoch: int | None
    retrieval: Retrieval | None


def check_job(job: TrainJob) -> None:
    """Raise ValueError or OSError for arguments that cannot work; opens no large file."""
    choice = job.choice
    resolve_device(job.device)
    check_logger(job.logger)
    outputs, start = Outputs(job.out), job.recipe.model.starting_checkpoint
    check_outputs(outputs, job.overwrite, job.resume)
    encoders = (job.images.features.vision_weights, job.images.features.text_weights)
    read = (job.train_dataset, job.val_dataset, job.test_dataset, job.recipe.path, start, *encoders)
    check_not_inputs([*outputs.results, outputs.unfinished], read)
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
        check_retrieval(choice.for_validation())
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


def train_projection(
    job: TrainJob,
    hooks: Hooks | None = None,
    encoding: Progress = silent,
    processes: Processes | None = None,
) -> TrainResult | None:
    """Train, and write the files named by Outputs.

    Args:
        job: the arguments; see `check_job`.
        hooks: progress of the steps, and what is called after every epoch.
        encoding: progress of encoding images, if the datasets hold images.
        processes: this process and its equals, which divide every batch; the first one writes.

    Returns:
        The result, or None if the job asked to resume a training that is complete.

    Raises:
        ValueError: features are missing or do not fit the recipe, or resuming would mix settings.
        RuntimeError: the loss is not finite (the last good state stays on disk), or another
            process trains to the same files.
    """
    outputs, processes = Outputs(job.out), processes or Processes()
    if processes.rank > 0:
        return _train_together(job, outputs, hooks or Hooks(), encoding, processes)
    outputs.weights.parent.mkdir(parents=True, exist_ok=True)
    lock = hold_lock(outputs.lock)
    try:
        return _train_together(job, outputs, hooks or Hooks(), encoding, processes)
    finally:
        if lock is not None:
            if not outputs.unfinished.exists():
                outputs.lock.unlink(missing_ok=True)
            lock.close()


def _train_together(
    job: TrainJob, outputs: Outputs, hooks: Hooks, encoding: Progress, processes: Processes
) -> TrainResult | None:
    """`train_projection`, with the output files to itself and the other processes."""
    device = processes.device(resolve_device(job.device))
    settings = run_settings(job)
    first = processes.rank == 0
    found = _found_files(job, settings, outputs) if first else None
    complete, unfinished = processes.broadcast(found)
    if complete:
        outputs.lock.unlink(missing_ok=True)
        return None
    pairs, validation, test = open_datasets(job, Encoders(job.images, device, encoding))
    model = first_model(job.recipe.model, job.loop.seed, job.images.features).to(device)
    model.load_state_dict(processes.broadcast(weights_on_cpu(model)))
    run = TrainingRun(model, pairs, validation, job.loop, processes)
    settings["captions"] = len(pairs)
    if unfinished is not None:
        check_same_settings(unfinished.settings, settings, outputs.unfinished)
        run.restore(unfinished)
    if not first:
        run.run(Hooks(choose_heads=_choose_heads(job, run)))
        processes.gather(None)  # the first one writes
        return TrainResult(run.state.records, run.state.best_epoch, None)
    keeper = StateFile(outputs.unfinished, settings, job.checkpoint_seconds)
    weights = _train(job, run, keeper, hooks)
    model.load_state_dict(weights)
    ranks = retrieval(*embed_pairs(model.eval(), test)) if test is not None else None
    result = TrainResult(run.state.records, run.state.best_epoch, ranks)
    with atomic_files(job.out.parent, *(path.name for path in outputs.results)) as folder:
        written = Outputs(folder / job.out.name)
        if run.state.heads is not None:
            write_heads(run.state.heads, pairs, written.heads)
        save_torch(weights, written.weights)
        write_losses(result.records, written.losses)
        plot_losses(result.records, written.plot, job.out.stem)
        write_summary(_summary(job, settings, _made_with(job, pairs), result), written.summary)
    outputs.remove_unfinished()
    processes.gather(None)
    return result


def open_datasets(job: TrainJob, encoders: Encoders) -> tuple[Pairs, Pairs | None, Pairs | None]:
    """The training, validation and test pairs, checked against the recipe."""
    choice, recipe = job.choice, job.recipe
    wanted = (
        (job.train_dataset, choice),
        (job.val_dataset, choice.for_validation()),
        (job.test_dataset, choice.for_validation()),
    )
    opened: list[tuple[Pairs, str] | None] = []
    for path, features in wanted:
        if path is None:
            opened.append(None)
            continue
        pairs = open_pairs(path, features, encoders)
        check_widths(pairs, recipe, path)
        warn_of_other_models(pairs, recipe.features, path)
        opened.append((pairs, path))
    # Images are encoded only now, when everything is known to fit.
    train, validation, test = (o and in_memory(*o) for o in opened)
    assert train is not None
    return train, validation, test


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


def run_settings(job: TrainJob) -> dict[str, Any]:
    """Everything that the final weights depend on, flat: what `--resume` compares."""
    loop = asdict(job.loop)
    del loop["train"]
    settings = {
        **{f"model.{key}": value for key, value in asdict(job.recipe.model).items()},
        **{f"train.{key}": value for key, value in job.loop.train.as_dict().items()},
        **loop,
        "train_dataset": job.train_dataset,
        "train_dataset_digest": content_digest(job.train_dataset),
        "val_dataset": job.val_dataset,
        "val_dataset_digest": content_digest(job.val_dataset),
        "feature_name": job.choice.visual,
        "text_features": job.choice.text,
        "save_head_activations": job.save_heads,
    }
    if not holds_features(job.train_dataset):
        settings |= encoding_settings(job.images)
    return settings


def write_heads(heads: Tensor, pairs: Pairs, path: Path) -> None:
    """JSON: annotation id -> image id and the head chosen for the caption in the last epoch."""
    chosen = {
        str(annotation["id"]): {"image_id": annotation["image_id"], "head": head}
        for annotation, head in zip(pairs.features.annotations, heads.tolist(), strict=True)
    }
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(chosen) + "\n", encoding="utf-8")


def _unfinished(job: TrainJob, settings: dict[str, Any], outputs: Outputs) -> Checkpoint | None:
    """The state to continue from, if asked for and there; made with the same settings."""
    if not job.resume or not outputs.unfinished.exists():
        return None
    unfinished = load_checkpoint(outputs.unfinished)
    captions = unfinished.settings.get("captions")  # compared once the dataset is open
    check_same_settings(unfinished.settings, settings | {"captions": captions}, outputs.unfinished)
    return unfinished


def _found_files(
    job: TrainJob, settings: dict[str, Any], outputs: Outputs
) -> tuple[bool, Checkpoint | None]:
    """Whether a training to be resumed is complete, and else the state to go on from."""
    unfinished = _unfinished(job, settings, outputs)
    if not job.resume or unfinished is not None or not outputs.weights.exists():
        return False, unfinished
    before = present_settings(read_summary(outputs.summary).get("settings", {}))
    captions = before.get("captions")
    check_same_settings(before, settings | {"captions": captions}, outputs.weights)
    return True, None


def _choose_heads(job: TrainJob, run: TrainingRun) -> Callable[[Batch], Tensor] | None:
    return partial(chosen_heads, run.model) if job.save_heads else None


def _train(job: TrainJob, run: TrainingRun, keeper: StateFile, hooks: Hooks) -> dict[str, Tensor]:
    """Run the loop with its table, logger and state file."""
    outputs = Outputs(job.out)
    history = [(record.logged(), record.epoch) for record in run.state.records]
    logger = open_logger(job.logger, job.out, keeper.settings, run.state.epoch, history)

    def on_epoch(record: EpochRecord) -> None:
        if not outputs.weights.exists():  # else the table belongs to those
            write_losses(run.state.records, outputs.losses)
        logger.log(record.logged(), record.epoch)
        if hooks.on_epoch is not None:
            hooks.on_epoch(record)

    around = Hooks(hooks.progress, on_epoch, _choose_heads(job, run))
    try:
        return run.run(around, keeper)
    except RuntimeError as error:
        if not outputs.unfinished.exists():
            raise
        kept = f"The last good state is in {outputs.unfinished}."
        raise RuntimeError(f"{str(error).rstrip('.')}. {kept}") from error
    finally:
        logger.close()


def _made_with(job: TrainJob, pairs: Pairs) -> dict[str, Any]:
    """What made the training features, as a feature file says it."""
    if isinstance(pairs, StoredPairs):
        return pairs.features.settings
    models = job.images.features
    return {
        "vision": {
            "model": models.vision_model,
            "weights": models.vision_weights,
            **recorded_normalisation(models.vision_model),
        },
        "text": {"model": models.text_model, "weights": models.text_weights},
    }


def _summary(
    job: TrainJob, settings: dict[str, Any], trained_on: dict[str, Any], result: TrainResult
) -> dict[str, Any]:
    last = result.records[-1]
    return {
        "command": job.command,
        "recipe": str(job.recipe.path),
        "features": asdict(job.recipe.features),
        "trained_on": trained_on,
        "settings": settings,
        "epochs": len(result.records),
        "best_epoch": result.best_epoch,
        "train_loss": last.train_loss,
        "val_loss": last.val_loss,
        "retrieval": asdict(result.retrieval) if result.retrieval else None,
    }
