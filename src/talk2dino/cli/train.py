"""`train.py`: train a projection on stored features, or straight from images."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from talk2dino.cli.entry import (
    DONE,
    INTERRUPTED,
    Command,
    core_share,
    local_processes,
    run_command,
    step_bar,
    typed_command,
)

TEXT_CHOICES = "ann_feats, clip_txt_out_tokens[_avg], clip_second_last_out, bert-base_features"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code."""
    return run_command(COMMAND, argv)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the flags of section 6; `--model` and `--model_config` are the same one."""
    data = parser.add_argument_group("data")
    _recipe = "recipe of the projection: a file of configs/"
    data.add_argument("--model", "--model_config", required=True, metavar="YAML", help=_recipe)
    data.add_argument(
        "--train_dataset",
        required=True,
        metavar="PATH",
        help="a feature file, feature shards, or images with captions (COCO JSON, tars)",
    )
    data.add_argument("--val_dataset", metavar="PATH", help="the same, for the validation loss")
    data.add_argument("--test_dataset", metavar="PATH", help="the same, for retrieval at the end")
    data.add_argument(
        "--feature_name",
        metavar="NAME",
        help="image feature (default: disentangled_self_attn, or patch_tokens where the recipe "
        "has weight_attn_heads); validation then uses avg_self_attn_out",
    )
    data.add_argument(
        "--text_features",
        metavar="NAME",
        help=f"text feature: {TEXT_CHOICES} (default: ann_feats, or what CLIPLastLayer needs)",
    )
    _add_optimisation(parser.add_argument_group("optimisation; the recipe has the rest"))
    _add_outputs(parser.add_argument_group("outputs"))
    _add_images(parser.add_argument_group("images instead of features; the recipe has defaults"))


def _add_optimisation(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--batch_size",
        type=int,
        metavar="N",
        help="captions per step, of all processes together (default: the recipe's)",
    )
    group.add_argument("--optimizer", default="Adam", metavar="NAME", help="Adam or AdamW")
    group.add_argument("--weight_decay", type=float, default=0.05, help="of AdamW")
    group.add_argument(
        "--scheduler",
        default="linear",
        metavar="NAME",
        help="linear (constant after the warm-up) or cosine (falls to 0)",
    )
    group.add_argument(
        "--warmup", type=int, default=0, metavar="STEPS", help="linear rise from lr/STEPS"
    )
    group.add_argument("--seed", type=int, default=123, help="of weights, order and sampling")
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:<i> or mps")


def _add_outputs(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--out", type=Path, metavar="PTH", help="weights (default: weights/<recipe>[_<pedix>].pth)"
    )
    group.add_argument("--name_pedix", default="", help="ending of the default name")
    group.add_argument("--overwrite", action="store_true", help="replace existing weights")
    group.add_argument(
        "--resume", action="store_true", help="go on with an interrupted training, if there is one"
    )
    group.add_argument(
        "--checkpoint_seconds",
        type=float,
        default=60.0,
        help="save the state this often within an epoch; every epoch's end is saved",
    )
    group.add_argument("--logger", default="none", help="none, tensorboard, wandb or trackio")
    group.add_argument("--use_wandb", action="store_true", help="the same as --logger wandb")
    group.add_argument(
        "--save_head_activations",
        action="store_true",
        help="write the head chosen for each caption in the last epoch, as JSON",
    )


def _add_images(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--data_dir", default="../coco/", help="where the image files are")
    group.add_argument("--resize_dim", type=int, metavar="PX", help="short side after resizing")
    group.add_argument("--crop_dim", type=int, metavar="PX", help="side of the centre crop")
    group.add_argument("--vision_weights", metavar="W", help="pretrained, a path, or seeded:<n>")
    group.add_argument("--text_weights", metavar="W", help="pretrained, a path, or seeded:<n>")
    group.add_argument(
        "--cache_gb",
        type=float,
        default=_half_of_the_memory_gb(),
        help="features up to this size are kept in memory by each process; larger ones are read "
        "from their file, or encoded, again in every epoch (default: half of the memory, divided "
        "by the processes on it: %(default)s)",
    )
    group.add_argument(
        "--workers", type=int, default=min(8, core_share()), help="decoding processes"
    )


def _half_of_the_memory_gb() -> float:
    """For this process: those of one machine share it."""
    try:
        half = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2e9
        return round(half / local_processes(), 1)
    except (AttributeError, ValueError, OSError):  # not every system can say
        return 8.0


def check(args: argparse.Namespace) -> None:
    """Raise for wrong arguments; see `check_job`."""
    from talk2dino.methods.talk2dino.training.job import check_job

    if args.use_wandb and args.logger not in ("none", "wandb"):
        raise ValueError(f"--use_wandb contradicts --logger {args.logger}: pass one of them")
    check_job(_job(args))


def run(args: argparse.Namespace, found: None = None) -> int:
    """Train, and say what was written."""
    from talk2dino.methods.talk2dino.training.job import train_projection
    from talk2dino.processes import is_first_process, joined_processes
    from talk2dino.progress import silent as silent_progress
    from talk2dino.training.history import EpochRecord
    from talk2dino.training.run import Hooks

    job = _job(args)
    silent = not is_first_process()

    def on_epoch(record: EpochRecord) -> None:
        validation = "" if record.val_loss is None else f"  validation {record.val_loss:.6g}"
        epochs = job.loop.train.num_epochs
        print(f"epoch {record.epoch}/{epochs}  train {record.train_loss:.6g}{validation}")

    encoding = silent_progress if silent else _encoding_bar
    try:
        with joined_processes() as processes:
            hooks = Hooks(step_bar, on_epoch=on_epoch)
            result = train_projection(job, hooks, encoding, processes)
    except KeyboardInterrupt:
        print("interrupted; add --resume to the same command to go on", file=sys.stderr)
        return INTERRUPTED
    if silent:
        return DONE
    if result is None:
        print(f"{job.out} is complete: nothing to resume")
        return DONE
    if result.best_epoch is not None:
        print(f"kept the weights of epoch {result.best_epoch}, the lowest validation loss")
    if result.retrieval is not None:
        print(f"text to image: {result.retrieval.text_to_image}")
        print(f"image to text: {result.retrieval.image_to_text}")
    print(f"weights: {job.out}  losses: {job.outputs.losses}, {job.outputs.plot}")
    return DONE


def _job(args: argparse.Namespace):  # type: ignore[no-untyped-def]  # torch stays unimported
    from talk2dino.methods.talk2dino.recipe import load_recipe
    from talk2dino.methods.talk2dino.training.encoding import ImageOptions
    from talk2dino.methods.talk2dino.training.job import TrainJob
    from talk2dino.methods.talk2dino.training.loop import LoopSettings
    from talk2dino.methods.talk2dino.training.outputs import default_weights

    recipe = load_recipe(args.model)
    overrides = {
        key: getattr(args, key)
        for key in ("resize_dim", "crop_dim", "vision_weights", "text_weights")
        if getattr(args, key) is not None
    }
    train = recipe.train
    if args.batch_size is not None:
        train = replace(train, batch_size=args.batch_size)
    return TrainJob(
        recipe=recipe,
        train_dataset=args.train_dataset,
        val_dataset=args.val_dataset,
        test_dataset=args.test_dataset,
        feature_name=args.feature_name,
        text_features=args.text_features,
        out=args.out or default_weights(args.model, args.name_pedix),
        loop=LoopSettings(
            train,
            args.optimizer,
            args.weight_decay,
            args.scheduler,
            args.warmup,
            args.seed,
        ),
        images=ImageOptions(
            replace(recipe.features, **overrides),
            Path(args.data_dir),
            args.workers,
            int(args.cache_gb * 1e9),
        ),
        device=args.device,
        logger="wandb" if args.use_wandb else args.logger,
        save_heads=args.save_head_activations,
        overwrite=args.overwrite,
        resume=args.resume,
        checkpoint_seconds=args.checkpoint_seconds,
        command=typed_command(COMMAND, "train.py", args, but=("resume", "overwrite")),
    )


def _encoding_bar(total: int, done: int):  # type: ignore[no-untyped-def]
    """A bar for the images of a dataset without features."""
    from tqdm import tqdm

    return tqdm(total=total, initial=done, desc="encoding", unit=" images", disable=None)


COMMAND = Command(
    name="train",
    summary="Train a projection from captions to image patches.",
    example="python train.py --model configs/vitb_mlp_infonce.yaml "
    "--train_dataset ../coco2014_b14/train.pth --val_dataset ../coco2014_b14/val.pth",
    add_arguments=add_arguments,
    check=check,
    run=run,
)

if __name__ == "__main__":
    sys.exit(main())
