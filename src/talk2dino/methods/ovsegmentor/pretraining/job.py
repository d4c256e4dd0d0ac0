"""One pretraining from its arguments to its folder: what `talk2dino pretrain` does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from talk2dino.devices import resolve_device
from talk2dino.files import (
    atomic_files,
    check_not_inputs,
    content_digest,
    hold_lock,
    load_torch,
)
from talk2dino.methods.ovsegmentor.checkpoints import WEIGHTS_FILE
from talk2dino.methods.ovsegmentor.convert import write_model
from talk2dino.methods.ovsegmentor.data.batches import open_samples
from talk2dino.methods.ovsegmentor.data.dataset import Collate, SampleOptions
from talk2dino.methods.ovsegmentor.data.lemmas import find_lemmas
from talk2dino.methods.ovsegmentor.pretraining.config import SECTIONS, PretrainingRecipe
from talk2dino.methods.ovsegmentor.pretraining.loop import Hooks, PretrainingRun, StateFile
from talk2dino.methods.ovsegmentor.pretraining.outputs import (
    PretrainingOutputs,
    check_folder,
    plot_records,
)
from talk2dino.methods.ovsegmentor.pretraining.selection import HeldOut
from talk2dino.methods.ovsegmentor.pretraining.start import (
    check_start,
    first_model,
    first_tokenizer,
    saved_tokenizer,
    with_words,
)
from talk2dino.methods.ovsegmentor.pretraining.state import EpochRecord, Snapshot, load_snapshot
from talk2dino.methods.ovsegmentor.text import TOY, Tokenizer, require_transformers
from talk2dino.processes import Processes
from talk2dino.training.history import write_losses
from talk2dino.training.loggers import check_logger, open_logger
from talk2dino.training.outputs import read_summary, write_summary
from talk2dino.training.state import check_same_settings


@dataclass(frozen=True)
class PretrainingJob:
    """The arguments of one pretraining; the recipe has the rest."""

    recipe: PretrainingRecipe
    """A file of configs/."""
    out: Path
    """The folder to write."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:<i> or mps."""
    workers: int = 0
    """Processes that read images; the result does not depend on it."""
    logger: str = "none"
    """none, tensorboard or wandb."""
    overwrite: bool = False
    """Replace the weights or the unfinished run that are there."""
    resume: bool = False
    """Continue an interrupted run; start if there is none."""
    checkpoint_seconds: float = 600.0
    """Time between two saves of the state within an epoch."""
    command: str = ""
    """What the user typed, for the record."""

    @property
    def outputs(self) -> PretrainingOutputs:
        """Its files."""
        return PretrainingOutputs(self.out)


@dataclass(frozen=True)
class PretrainingResult:
    """What a pretraining ends with."""

    records: list[EpochRecord]
    """One per epoch."""
    best_epoch: int | None
    """The epoch whose weights were kept; None for the last."""
    lost: str
    """What images could not be read, if any."""


def check_job(job: PretrainingJob) -> None:
    """Raise ValueError or OSError for arguments that cannot work; opens no large file."""
    require_transformers()
    resolve_device(job.device)
    check_logger(job.logger)
    check_folder(job.outputs, job.overwrite, job.resume)
    recipe, written = job.recipe, [job.out / name for name in job.outputs.results]
    read = (recipe.path, recipe.data.metafile, recipe.selection.metafile, recipe.start.dino)
    check_not_inputs([job.out, *written], [*read, recipe.start.stage1, recipe.start.text])
    check_start(job.recipe)
    if job.workers < 0:
        raise ValueError(f"--workers must not be negative, got {job.workers}")
    for name, path in (
        ("data", job.recipe.data.metafile),
        ("selection", job.recipe.selection.metafile),
    ):
        if path and Path(path).suffix in (".csv", ".tsv", ".json") and not Path(path).is_file():
            raise FileNotFoundError(f"{name}: metafile: {path}: no such file")


def collective_backend(device: str) -> str:
    """What connects processes whose models are on a device: NCCL between GPUs, else gloo."""
    on_gpu = resolve_device(device).type == "cuda" and torch.distributed.is_nccl_available()
    return "cpu:gloo,cuda:nccl" if on_gpu else "gloo"


def pretrain(
    job: PretrainingJob, hooks: Hooks | None = None, processes: Processes | None = None
) -> PretrainingResult | None:
    """Pretrain one stage, and write the folder that PretrainingOutputs describes.

    Args:
        job: the arguments; see `check_job`.
        hooks: progress of the steps, and what is called with values.
        processes: this process and its equals, which divide every step; the first one writes.

    Returns:
        The result, or None if the job asked to resume a run that is complete.

    Raises:
        ValueError, FileNotFoundError: data or first weights do not fit, or resuming would mix
            settings.
        RuntimeError: a loss is not finite (the last good state stays on disk), too many images
            could not be read, or another process writes to the same folder.
    """
    processes = processes or Processes()
    if processes.rank > 0:
        return _pretrain_together(job, hooks or Hooks(), processes)
    job.out.mkdir(parents=True, exist_ok=True)
    lock = hold_lock(job.outputs.lock)
    try:
        return _pretrain_together(job, hooks or Hooks(), processes)
    finally:
        if lock is not None:
            if not job.outputs.unfinished.exists():
                job.outputs.lock.unlink(missing_ok=True)
            lock.close()


def run_settings(job: PretrainingJob, world: int) -> dict[str, Any]:
    """Everything that the final weights depend on, flat: what `--resume` compares."""
    recipe = job.recipe
    settings: dict[str, Any] = {
        "model": recipe.model,
        "stage": recipe.stage,
        "compat": recipe.compat,
        "processes": world,
    }
    for section in SECTIONS:
        for key, value in asdict(getattr(recipe, section)).items():
            settings[f"{section}.{key}"] = value
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


def _pretrain_together(
    job: PretrainingJob, hooks: Hooks, processes: Processes
) -> PretrainingResult | None:
    """`pretrain`, with the folder to itself and the other processes."""
    device = processes.device(resolve_device(job.device))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    outputs, settings = job.outputs, run_settings(job, processes.count)
    complete, resuming = processes.broadcast(
        _found_files(job, settings) if processes.rank == 0 else None
    )
    if complete:
        outputs.lock.unlink(missing_ok=True)
        return None
    run, tokenizer = open_run(job, device, processes)
    if resuming:
        run.restore(_snapshot(job, settings))
    keeper = None
    if processes.rank == 0:
        if job.overwrite:
            outputs.remove_state()
        keeper = StateFile(outputs.unfinished, outputs.best, settings, job.checkpoint_seconds)
    _train(job, run, hooks, keeper)
    lost = "; ".join(line for line in processes.gather(run.lost.summary()) if line)
    result = PretrainingResult(run.state.records, run.state.best_epoch, lost)
    if keeper is not None:
        _write(job, run, tokenizer, result, settings)
    processes.gather(None)
    return result


def open_run(
    job: PretrainingJob, device: torch.device, processes: Processes
) -> tuple[PretrainingRun, Tokenizer]:
    """The run of a job before its first step, and the tokeniser of its model."""
    recipe = job.recipe
    tokenizer = first_tokenizer(recipe)
    options = SampleOptions(recipe.train.seed, pairs=recipe.stage == 2)
    samples = open_samples(recipe.data, recipe.augment, options, tokenizer)
    if recipe.config.text.name == TOY and recipe.stage == 1:
        tokenizer = with_words(tokenizer, recipe.config, samples.rows)
    held_out = None
    if recipe.selection.metafile:
        held_out = HeldOut(recipe, tokenizer, processes, job.workers)
        held_out.check_images()
    run = PretrainingRun(
        first_model(recipe).to(device),
        recipe,
        samples,
        Collate(tokenizer, recipe.train.text_length),
        held_out,
        processes,
        job.workers,
    )
    return run, tokenizer


def _found_files(job: PretrainingJob, settings: dict[str, Any]) -> tuple[bool, bool]:
    """Whether a run to be resumed is complete, and whether there is a state to go on from."""
    if not job.resume:
        return False, False
    if job.outputs.unfinished.exists():
        return False, True
    if not job.outputs.complete.exists():
        return False, False
    before = read_summary(job.outputs.summary).get("settings", {})
    check_same_settings(before, settings, job.out)
    return True, False


def _snapshot(job: PretrainingJob, settings: Mapping[str, Any]) -> Snapshot:
    snapshot = load_snapshot(job.outputs.unfinished)
    check_same_settings(snapshot.settings, settings, job.outputs.unfinished)
    return snapshot


def _train(
    job: PretrainingJob, run: PretrainingRun, hooks: Hooks, keeper: StateFile | None
) -> None:
    """Run the loop with its table, logger and state file; only the first process has those."""
    if keeper is None:
        run.run(Hooks())
        return
    history = [
        (r.logged(job.recipe.stage), r.epoch * run.steps_per_epoch) for r in run.state.records
    ]
    log = open_logger(job.logger, job.outputs.log, keeper.settings, run.steps_done, history)

    def on_values(values: Mapping[str, float], step: int) -> None:
        log.log(values, step)
        if hooks.on_values is not None:
            hooks.on_values(values, step)

    def on_epoch(record: EpochRecord) -> None:
        if not job.outputs.complete.exists():  # else the table belongs to that model
            write_losses(run.state.records, job.outputs.losses, EpochRecord)
        if record.held_out is not None:
            log.log({"held_out/matching": record.held_out}, run.steps_done)
        if hooks.on_epoch is not None:
            hooks.on_epoch(record)

    try:
        run.run(dataclasses.replace(hooks, on_values=on_values, on_epoch=on_epoch), keeper)
    except RuntimeError as error:
        if not keeper.path.exists():
            raise
        kept = f"The last good state is in {keeper.path}."
        raise RuntimeError(f"{str(error).rstrip('.')}. {kept}") from error
    finally:
        log.close()


def _write(
    job: PretrainingJob,
    run: PretrainingRun,
    tokenizer: Tokenizer,
    result: PretrainingResult,
    settings: dict[str, Any],
) -> None:
    """The kept weights and what is said of them; then the state is no longer needed."""
    outputs = job.outputs
    if result.best_epoch is not None:
        run.model.load_state_dict(load_torch(outputs.best))
    summary = {
        "command": job.command,
        "recipe": str(job.recipe.path),
        "settings": settings,
        "epochs": len(result.records),
        "steps_per_epoch": run.steps_per_epoch,
        "best_epoch": result.best_epoch,
        "selected_by": _selected_by(job.recipe),
        "last": asdict(result.records[-1]),
        "lost": result.lost,
    }
    source = f"pretraining, stage {job.recipe.stage}"
    with atomic_files(job.out, *outputs.results) as folder:
        written = PretrainingOutputs(folder)
        write_losses(result.records, written.losses, EpochRecord)
        plot_records(result.records, written)
        write_summary(summary, written.summary)
        kept = saved_tokenizer(run.model.config, tokenizer)
        write_model(run.model.config, run.model.state_dict(), folder, source, kept)
    outputs.remove_unfinished()


def _selected_by(recipe: PretrainingRecipe) -> str:
    if recipe.selection.metafile is None:
        return "nothing: the last epoch"
    return f"image-caption loss of {recipe.selection.metafile}"
