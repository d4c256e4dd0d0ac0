"""Write a model as a folder in Hugging Face's layout with a model card, and upload it."""

import dataclasses
import json
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from jinja2 import Environment, PackageLoader, StrictUndefined

import talk2dino
from talk2dino.backbones.seeded import PREFIX
from talk2dino.backbones.text import PRETRAINED, TextEncoder
from talk2dino.benchmarks.results import NoResult, read_result
from talk2dino.benchmarks.tables import results_table
from talk2dino.config import reason
from talk2dino.files import (
    atomic_files,
    check_replaceable,
    content_digest,
    listed,
    save_safetensors,
)
from talk2dino.methods.talk2dino.config import SegmenterConfig
from talk2dino.methods.talk2dino.hub.find import (
    CONFIG,
    INCLUDED,
    TOY,
    WEIGHTS,
    FoundModel,
    is_repository,
)
from talk2dino.methods.talk2dino.hub.layout import PROJECTION, TEXT, VISION
from talk2dino.methods.talk2dino.recipe import present_settings
from talk2dino.methods.talk2dino.segmenter import Talk2DinoSegmenter

CARD = "README.md"
FILES = (WEIGHTS, CARD, CONFIG)
"""Of a saved model; the last one makes the others valid."""
_DINOV3_LICENCE = "https://ai.meta.com/resources/models-and-libraries/dinov3-license"


def model_card(found: FoundModel, name: str, results: Sequence[Mapping[str, Any]]) -> str:
    """Markdown with front matter: the models, the training, the numbers, and how to use it.

    Args:
        found: what is in the folder.
        name: what `from_pretrained` finds the folder by: its repository, or a path.
        results: of evaluations, as `benchmarks.results.read_result` gives them.
    """
    title = name.rpartition("/")[2]
    settings = present_settings(found.training.get("settings") or {})
    environment = Environment(
        loader=PackageLoader(__package__, "."),
        trim_blocks=True,
        keep_trailing_newline=True,
        undefined=StrictUndefined,
    )
    tables = {
        heading: results_table(rows).markdown()
        for heading, refined in (("Without PAMR", False), ("With PAMR", True))
        if (rows := [result for result in results if bool(result["pamr"]) is refined])
    }
    return environment.get_template("card.md").render(
        front_matter=_front_matter(found.config, title, results),
        title=title,
        name=name,
        version=talk2dino.__version__,
        models=found.config,
        threshold=found.background_threshold,
        training=defaultdict(lambda: None, found.training),
        settings=defaultdict(lambda: None, settings),
        tables=tables,
    )


def _front_matter(config: SegmenterConfig, title: str, results: Sequence[Mapping[str, Any]]) -> str:
    """What the Hub reads: licence, tags, and the numbers as a model index."""
    from huggingface_hub import EvalResult, ModelCardData

    numbers = [
        EvalResult(
            task_type="image-segmentation",
            dataset_type=result["benchmark"],
            dataset_name=result["title"],
            metric_type="mean_iou",
            metric_name="mIoU with PAMR" if result["pamr"] else "mIoU",
            metric_value=round(result["mIoU"], 2),
        )
        for result in results
        if result["mIoU"] is not None
    ]
    data = ModelCardData(
        **_licence(config),
        library_name="talk2dino",
        pipeline_tag="image-segmentation",
        tags=["open-vocabulary-segmentation", "talk2dino"],
        eval_results=numbers or None,
        model_name=title if numbers else None,
    )
    return data.to_yaml()


def _licence(config: SegmenterConfig) -> dict[str, Any]:
    """The projection's licence, or that of a backbone in the folder."""
    vision = config.vision_model
    if config.vision_weights != INCLUDED or vision == TOY or "dinov2" in vision:
        return {"license": "apache-2.0"}
    if "dinov3" not in vision:
        return {"license": "unknown"}
    name = "dinov3-license"
    return {"license": "other", "license_name": name, "license_link": _DINOV3_LICENCE}


class Saving:
    """Mixed into `Talk2DINO`."""

    segmenter: Talk2DinoSegmenter
    loaded: FoundModel
    changed: Collection[str]

    def save_pretrained(
        self,
        folder: str | Path,
        *,
        projection_only: bool = False,
        results: str | Path | None = None,
        overwrite: bool = False,
        repo_id: str | None = None,
    ) -> Path:
        """Write `model.safetensors`, `config.json` and a model card; returns the folder.

        The card says what the model is made of, how it was trained (if it was loaded from what
        `train.py` wrote) and its benchmark results.

        Args:
            folder: made if it is not there.
            projection_only: leave out the frozen models (4 MB instead of a gigabyte); they are
                downloaded when the folder is loaded.
            results: folder of `evaluate --output`, for the table in the card.
            overwrite: replace the files of an earlier save.
            repo_id: what the card calls the model; None for the folder's name.

        Raises:
            FileExistsError: the folder holds such files and `overwrite` is false.
            ValueError: a part that cannot be saved, or results that cannot be read.
        """
        folder, segmenter, training = Path(folder), self.segmenter, dict(self.loaded.training)
        check_replaceable(folder, FILES, overwrite)
        config = _saved_config(segmenter, self.changed, projection_only)
        if "projection" in self.changed:
            training["changed_later"] = True
            if results is not None:
                raise ValueError(
                    f"the results in {results} are of the projection as it was loaded, and it was "
                    "changed since. Save without them, evaluate what was saved, and save that."
                )
        rows = _own_results(Path(results), segmenter.config, self.loaded.origin) if results else []
        found = dataclasses.replace(self.loaded, config=config, training=training)
        # A path, because a name alone may be that of another model: a folder called toy.
        card = model_card(found, repo_id or f"./{folder.resolve().name}", rows)
        text = json.dumps(found.as_json(), indent=2, ensure_ascii=False) + "\n"
        parts = {PROJECTION: segmenter.projection}
        if not projection_only:
            parts |= {VISION: segmenter.vision.model, TEXT: segmenter.text.model}
        tensors = {
            prefix + name: value.detach().cpu()
            for prefix, module in parts.items()
            for name, value in module.state_dict().items()
        }
        with atomic_files(folder, *FILES) as written:
            save_safetensors(tensors, written / WEIGHTS)
            (written / CARD).write_text(card, encoding="utf-8")
            (written / CONFIG).write_text(text, encoding="utf-8")
        return folder

    def push_to_hub(
        self,
        repo_id: str,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload a Talk2DINO model",
        projection_only: bool = False,
        results: str | Path | None = None,
    ) -> str:
        """Upload what `save_pretrained` writes to `owner/name`; returns the address.

        The repository is made if it is not there; other files in it stay. Arguments as in
        `save_pretrained`; `token` is the Hub's, by default the one of `hf auth login`.

        Raises:
            ValueError: no name of a repository; otherwise as `save_pretrained`.
            RuntimeError: the Hub was not reached, or refused.
        """
        if not is_repository(repo_id):  # without an owner the Hub makes one, and never finds it
            raise ValueError(f"{repo_id!r} is no repository of an owner: give owner/name.")
        api, what = HfApi(token=token), {"projection_only": projection_only, "results": results}
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, repo_id=repo_id, **what)  # type: ignore[arg-type]
            try:
                api.create_repo(repo_id, private=private, exist_ok=True)
                api.upload_folder(
                    repo_id=repo_id, folder_path=folder, commit_message=commit_message
                )
            except Exception as error:  # the network libraries raise what they raise
                raise RuntimeError(
                    f"could not upload to {repo_id} ({reason(error)}). Check the network "
                    "and the token (hf auth login), or upload what save_pretrained writes by hand."
                ) from error
        return f"{api.endpoint}/{repo_id}"


def _own_results(folder: Path, config: SegmenterConfig, origin: str) -> list[dict[str, Any]]:
    """The results of a model's weights among those of an evaluation's output folder.

    Raises:
        ValueError: there are none, a benchmark has two, or a file is damaged.
    """
    weights, kept = content_digest(config.projection_weights), {}
    for path in listed(folder, "*.json"):
        with suppress(NoResult):  # of another command
            result = read_result(path)
            segmenter = (result["settings"] or {}).get("segmenter", {})
            if segmenter.get("projection_weights") != weights:
                continue
            key = (result["benchmark"], bool(result["pamr"]))
            if key in kept:
                raise ValueError(
                    f"{folder} holds two results of this model on {result['benchmark']}. Keep the "
                    "one for the card in a folder of its own."
                )
            kept[key] = result
    if not kept:
        raise ValueError(
            f"{folder} holds no results of these weights. Evaluate what is saved: "
            f"python -m talk2dino evaluate --model {shlex.quote(origin)}"
        )
    return list(kept.values())


def _saved_config(
    segmenter: Talk2DinoSegmenter, changed: Collection[str], projection_only: bool
) -> SegmenterConfig:
    """The configuration, whose weights are in the folder or can be had by name."""
    config = segmenter.config
    if not projection_only and not isinstance(segmenter.text, TextEncoder):
        raise ValueError(
            f"{config.text_model} is no CLIP text encoder, and cannot be saved with the model. "
            "Pass projection_only=True."
        )
    changes: dict[str, Any] = {"pamr": False, "clean_background": False}
    changes["projection"] = segmenter.projection.config
    if not config.projection_weights.startswith(PREFIX) or "projection" in changed:
        changes["projection_weights"] = INCLUDED
    for side in ("vision", "text"):
        _, weights = config.frozen(side)
        if side in changed:
            weights = "a change in Python"
            changes[f"{side}_model"] = getattr(segmenter, side).name
        by_name = weights == PRETRAINED or weights.startswith(PREFIX)
        if projection_only and not by_name:
            raise ValueError(
                f"the {side} model's weights come from {weights}, which others do not have. Save "
                "the whole model."
            )
        changes[f"{side}_weights"] = weights if projection_only else INCLUDED
    return dataclasses.replace(config, **changes)
