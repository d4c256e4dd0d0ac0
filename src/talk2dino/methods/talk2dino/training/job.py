"""One training from its arguments to its files: what `train.py` does.

Its data are stored features, or images to encode.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from talk2dino.backbones.text import check_text, is_bert, load_text
from talk2dino.backbones.vision import recorded_normalisation
from talk2dino.features.captions import CaptionInput, check_exist
from talk2dino.features.chunks import Extraction
from talk2dino.features.extract import ImageExtraction
from talk2dino.features.job import Job, is_complete
from talk2dino.features.keys import BERT_KEY
from talk2dino.features.store import check_records, read_features
from talk2dino.features.text import TextExtraction
from talk2dino.files import content_digest, listed, save_torch, write_text
from talk2dino.methods.talk2dino.config import feature_differences
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
    LAST_LAYER_TEXT,
    FeatureChoice,
    StoredPairs,
    check_widths,
)
from talk2dino.methods.talk2dino.training.loop import LoopSettings, TrainingRun
from talk2dino.methods.talk2dino.training.retrieval import embed_pairs, retrieval
from talk2dino.processes import Processes
from talk2dino.progress import Progress, silent
from talk2dino.training.job import RunJob, RunOutputs
from talk2dino.training.run import weights_on_cpu

logger = logging.getLogger(__name__)

SUFFIX = ".pth"
HEADS_SUFFIX = ".heads.json"


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
    data_dir: Path = Path("../coco/")
    """Where the image files of a COCO JSON are, if a dataset holds no features."""
    workers: int = 0
    """Decoding processes."""
    cache_bytes: int = 8 << 30
    """Features up to this size are kept in memory; larger ones in their file."""
    save_heads: bool = False
    """Write the head chosen for every caption in the last epoch."""

    @property
    def outputs(self) -> RunOutputs:
        """Its files, beside the weights `out`, which are a plain state dict."""
        if self.out.suffix != SUFFIX:
            raise ValueError(f"--out {self.out}: the name of the weights must end in {SUFFIX}")
        names = (HEADS_SUFFIX, ".losses.csv", ".losses.png", SUFFIX, ".json")
        _, losses, plot, _, summary = results = tuple(map(self.out.with_suffix, names))
        state, lock = map(self.out.with_suffix, (".resume.pth", ".lock"))
        return RunOutputs(self.out, state, summary, losses, plot, lock, results)

    @property
    def choice(self) -> FeatureChoice:
        return FeatureChoice(self.feature_name or "", self.text_features or "", self.recipe.model)

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
        if not dataset_input(self.train_dataset, self.data_dir).holds_features:
            frozen = asdict(self.recipe.features)
            settings |= {f"features.{key}": value for key, value in frozen.items()}
            settings |= recorded_normalisation(self.recipe.features.vision_model)
            settings["data_dir"] = str(self.data_dir)
        return settings

    def extractions(self, choice: FeatureChoice, device: str) -> tuple[Extraction, Extraction]:
        """What makes these features of images and of captions; loads no model yet.

        Raises:
            ValueError, FileNotFoundError: unknown names or sizes, missing weights, or models that
                do not make the features.
        """
        frozen = self.recipe.features
        if is_bert(frozen.text_model) != (choice.text == BERT_KEY):
            raise ValueError(
                f"--text_features {choice.text} does not come from text_model "
                f"{frozen.text_model} of the recipe's features section"
            )
        images = ImageExtraction(
            model=frozen.vision_model,
            weights=frozen.vision_weights,
            resize_dim=frozen.resize_dim,
            crop_dim=frozen.crop_dim,
            keys=choice.image_keys,
            device=device,
            workers=self.workers,
        )
        captions = TextExtraction(
            model=frozen.text_model,
            weights=frozen.text_weights,
            dense=DENSE_TEXT in choice.caption_keys,
            second_last=LAST_LAYER_TEXT in choice.caption_keys,
            device=device,
        )
        return images, captions

    def present(self, settings: Mapping[str, Any]) -> Mapping[str, Any]:
        return {k: v for k, v in present_settings(settings).items() if k != "captions"}

    def open(self, device: torch.device, processes: Processes, encoding: Progress) -> TrainingRun:
        pairs, validation, test = open_datasets(self, device, processes, encoding)
        assert pairs is not None
        model = first_model(self.recipe.model, self.loop.seed, self.recipe.features).to(device)
        model.load_state_dict(processes.broadcast(weights_on_cpu(model)))
        run = TrainingRun(model, pairs, validation, self.loop, processes)
        run.heads = torch.full((len(pairs),), -1) if self.save_heads else None
        run.test = test
        return run

    def write(self, run: TrainingRun, weights: dict[str, Tensor], folder: Path) -> dict[str, Any]:
        if run.test is not None:
            run.model.load_state_dict(weights)
            run.retrieval = retrieval(*embed_pairs(run.model.eval(), run.test))
        name = Path(self.out.name)
        if run.heads is not None:  # of the last epoch: annotation id -> image id and chosen head
            pairs = zip(run.pairs.features.annotations, run.heads.tolist(), strict=True)
            heads = {str(a["id"]): {"image_id": a["image_id"], "head": head} for a, head in pairs}
            write_text(folder / name.with_suffix(HEADS_SUFFIX), json.dumps(heads) + "\n")
        save_torch(weights, folder / name)
        last = run.state.records[-1]
        return {
            "features": asdict(self.recipe.features),
            "trained_on": run.pairs.features.settings,
            "captions": len(run.pairs),
            "train_loss": last["train_loss"],
            "val_loss": last["val_loss"],
            "retrieval": {name: asdict(found) for name, found in run.retrieval.items()} or None,
        }


def check_job(job: TrainJob) -> None:
    """Raise ValueError or OSError for arguments that cannot work; opens no large file."""
    choice, strategy = job.choice, job.recipe.model.alignment_strategy
    start = job.recipe.model.starting_checkpoint
    encoders = (job.recipe.features.vision_weights, job.recipe.features.text_weights)
    datasets = (job.train_dataset, job.val_dataset, job.test_dataset)
    job.check((*datasets, job.data_dir, job.recipe.path, start, *encoders))
    if job.save_heads and (strategy != "max_score" or choice.visual != "disentangled_self_attn"):
        raise ValueError(
            "--save_head_activations needs alignment_strategy: max_score and --feature_name "
            f"disentangled_self_attn: {strategy} on {choice.visual} chooses no head"
        )
    for path in (job.train_dataset, job.val_dataset, job.test_dataset):
        if path is not None and not dataset_input(path, job.data_dir).holds_features:
            job.extractions(choice, "cpu")
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
    if start is not None and not start.startswith("seeded:") and not Path(start).is_file():
        raise FileNotFoundError(f"starting_checkpoint: {start}: no such file")
    if start is None and job.recipe.model.model_class == "CLIPLastLayer":
        encoder = job.recipe.features
        check_text(encoder.text_model, encoder.text_weights)
        if is_bert(encoder.text_model):
            raise ValueError(
                f"CLIPLastLayer starts from CLIP's last layer; text_model {encoder.text_model} is "
                "no CLIP"
            )


def dataset_input(path: str, data_dir: Path) -> CaptionInput:
    """What a flag names.

    Args:
        path: a feature file; a folder or pattern of tars, with our features or with images; a COCO
            captions JSON; or a folder of images with one such JSON in it.
        data_dir: where the images of a JSON are.

    Raises:
        FileNotFoundError, ValueError: nothing is there, or it is of an unknown kind.
    """
    folder = Path(path)
    if not folder.is_dir() or listed(folder, "*.tar"):
        return CaptionInput(path, data_dir)
    found = listed(folder, "*.json")
    if len(found) != 1:
        raise ValueError(
            f"{path} is a folder with neither .tar files nor exactly one captions .json "
            f"({len(found)} found)"
        )
    return CaptionInput(found[0], folder)


def open_datasets(
    job: TrainJob,
    device: torch.device,
    processes: Processes | None = None,
    progress: Progress = silent,
) -> list[StoredPairs | None]:
    """The pairs for training, validation and test; images are encoded when all is there.

    Images and captions are encoded once, by what the extraction commands run, to a feature file
    that stays until the training is complete. Its name says what it is made of.

    Args:
        job: names the datasets.
        device: where images are encoded, and where the batches are needed.
        processes: this process and its equals, which divide the encoding.
        progress: shows the encoding of images; see talk2dino.progress.

    Raises:
        ValueError: a file is damaged, lacks a feature (the message names the command for it) or
            does not fit the recipe; an image cannot be read.
        FileNotFoundError: images are missing.
    """
    choice, processes = job.choice, processes or Processes()
    wanted = (
        (job.train_dataset, choice),
        (job.val_dataset, choice.for_validation()),
        (job.test_dataset, choice.for_retrieval()),
    )
    opened: list[StoredPairs | None] = [None] * len(wanted)
    images = []
    for index, (path, chosen) in enumerate(wanted):  # all are looked at before any is encoded
        if path is None:
            continue
        data = dataset_input(path, job.data_dir)
        if data.holds_features:
            opened[index] = _opened(job, path, chosen, device)
        else:
            images.append((index, path, chosen, _place(job, data, chosen, processes)))
    for index, path, chosen, file in images:
        _encode(job, path, chosen, file, device, processes, progress)
        opened[index] = _opened(job, str(file), chosen, device)
    return opened


def _place(job: TrainJob, data: CaptionInput, choice: FeatureChoice, processes: Processes) -> Path:
    """Where the features of images are kept: named by all that decides them.

    Raises:
        FileNotFoundError: images are missing.
    """
    collection = data.split(0, 1)
    check_exist(collection.sources, every=True)
    texts = collection.features.annotations
    made: list[Any] = [[text["image_id"], text.get("id"), text["caption"]] for text in texts]
    for extraction in job.extractions(choice, "cpu"):
        weights, items = content_digest(extraction.weights), extraction.items(collection)
        made += [extraction.recorded(), extraction.keys, weights, items]
    digest = hashlib.sha256(json.dumps(made).encode()).hexdigest()
    return job.outputs.prepared / f"{processes.broadcast(digest[:16])}.pth"


def _encode(
    job: TrainJob,
    path: str,
    choice: FeatureChoice,
    file: Path,
    device: torch.device,
    processes: Processes,
    progress: Progress,
) -> None:
    """Write the features of images and captions, unless they are there; the models go afterwards.

    Raises:
        ValueError: they do not fit the recipe, as the first image and the first caption show.
    """
    if processes.broadcast(is_complete(file)):
        return
    data, images = dataset_input(path, job.data_dir), file.with_suffix(".images.pth")
    of_images, of_captions = extractions = job.extractions(choice, str(device))
    collection = data.split(0, 1)
    image, caption = (next(made.results(collection, [range(1)])) for made in extractions)
    if not image.failures:  # else it is named in a moment
        check_widths(image.columns, caption.columns, choice, job.recipe, path)
    # What is unfinished is ours, and is made anew where it was begun with another batch or device.
    if not processes.broadcast(is_complete(images)):
        _extract(Job(data, of_images, images, overwrite=True, every=True), processes, progress)
    texts = CaptionInput(images, need_images=False)
    _extract(Job(texts, of_captions, file, overwrite=True), processes, silent)
    images.unlink(missing_ok=True)


def _opened(job: TrainJob, path: str, choice: FeatureChoice, device: torch.device) -> StoredPairs:
    data = CaptionInput(path, need_images=False)
    if data.tars:
        features = data.split(0, 1).features
    else:
        features = read_features(path)
        check_records(features, path, need_ids=False)
    pairs = StoredPairs(features, choice, path, device, job.cache_bytes)
    columns = (features.image_features, features.caption_features)
    check_widths(*columns, choice, job.recipe, path)
    for difference in feature_differences(features.settings, job.recipe.features):
        logger.warning("%s: %s as the recipe says", path, difference)
    return pairs


def _extract(job: Job, processes: Processes, progress: Progress) -> None:
    with job:
        job.join(processes)
        for split in job.pending():
            job.make(split, progress)
        job.failures()  # waits until the first process has written


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
