"""Every command that writes, killed at changes of its folder and run again: same bytes, no rest.

A run dies before its n-th change below the folder (a file opened for writing, renamed or removed).
`TALK2DINO_KILLS=10` kills every command ten times, and those that take long, too.
"""

import io
import json
import os
import random
import shutil
import signal
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from talk2dino import Talk2DINO
from talk2dino.__main__ import main
from talk2dino.features.store import write_features
from talk2dino.methods.ovsegmentor.checkpoints import seeded_weights
from talk2dino.methods.ovsegmentor.config import get_preset
from talk2dino.toy.world import WorldConfig, write_world

from .cli.small_training import features, write_recipe
from .methods.ovsegmentor.pretraining.conftest import recipe_values, write_captions

if not hasattr(os, "fork"):
    pytest.skip("needs POSIX processes", allow_module_level=True)

KILLS = int(os.environ.get("TALK2DINO_KILLS", "1"))
CHANGES = {"os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link"}
VOLATILE = {"timing", "finished", "command", "predictions", "data_root"}


@dataclass(frozen=True)
class Case:
    """A command line; `{in}` is the folder of inputs."""

    line: str
    before: str = ""
    """Run first, undisturbed."""
    again: str = ""
    """More flags, to go on after a kill."""
    slow: bool = False


EXTRACT = (
    "extract --ann_path {in}/images/captions.json --data_dir {in}/images --model toy "
    "--resize_dim 56 --crop_dim 56 --workers 0 --batch_size 5 --device cpu --out_path out"
)
TRAIN = (
    "train --model {in}/recipe.yaml --train_dataset {in}/train.pth --val_dataset {in}/train.pth "
    "--device cpu --checkpoint_seconds 0 --save_head_activations --out out/w.pth"
)
ON_PICTURES = (
    "train --model {in}/pictures.yaml --train_dataset {in}/good --workers 0 --device cpu "
    "--checkpoint_seconds 0 --out out/w.pth"
)
PRETRAIN = "pretrain --config {in}/one.yaml --device cpu --workers 0 --checkpoint_seconds 0"
PRETRAIN += " --out out"
EVALUATE = "evaluate --model toy --weights seeded:0 --benchmarks toy --data_root {in}/world"
EVALUATE += " --device cpu --output out"
SEGMENT = "segment --model toy --input {in}/images --textual_categories cat,frog --no_pamr"
SEGMENT += " --device cpu"
FILTER = "prepare-captions filter --metafile {in}/cc.tsv --lemmas lemminflect --dstdir out"
MERGE = "prepare-captions merge --dstdir {in}/parts --out out/all.csv"
PAIR = "prepare-captions makepair --metafile {in}/parts/cc12m_0.csv --processors 1 --out out/p.csv"
CASES = {
    "extract": Case(EXTRACT + "/x.pth"),
    "extract over a file": Case(EXTRACT + "/x.pth --overwrite", EXTRACT + "/x.pth --dtype float16"),
    "extract shards": Case(EXTRACT + " --write_as_wds --n_shards 2 --n_in_splits 2"),
    "extract-text": Case(
        "extract-text --ann_path out/x.pth --model toy --device cpu", EXTRACT + "/x.pth"
    ),
    "train": Case(TRAIN, again="--resume"),
    "train on pictures": Case(ON_PICTURES, again="--resume", slow=True),
    "train over weights": Case(TRAIN + " --seed 2 --overwrite", before=TRAIN, slow=True),
    "evaluate": Case(EVALUATE + " --save_predictions out/p --gt_qual_path out/t"),
    "report": Case("report out --output out/r.html --latex --overwrite", EVALUATE),
    "compare": Case("compare {in}/0.json {in}/1.json --json out/c.json"),
    "ablate": Case(
        "ablate --weights seeded:0 --options smoothing --data_root {in}/world --device cpu "
        "--output out"
    ),
    "retrieve": Case(
        "retrieve --store {in}/store.pth --model {in}/small --text dog --images {in}/images "
        "--sheet out/s.png --device cpu"
    ),
    "segment": Case(SEGMENT + " --output out/ --save_mask --save_scores --overwrite"),
    "segment modes": Case(SEGMENT + " --output_folder out --vis mask pred --overwrite", slow=True),
    "segment exports": Case(SEGMENT + " --output out/ --export masks --overwrite", slow=True),
    "filter": Case(FILTER + " --processors 1"),  # more would be other processes
    "filter over parts": Case(
        FILTER + " --processors 1 --compat --overwrite", FILTER + " --processors 3"
    ),
    "merge": Case(MERGE),
    "merge over a result": Case(MERGE + " --overwrite", MERGE),
    "makepair": Case(PAIR),
    "makepair over a result": Case(PAIR + " --overwrite", PAIR + " --seed 4"),
    "json2csv": Case("prepare-captions json2csv --metafile {in}/lines.json --out out/lines.csv"),
    "convert": Case("convert ovsegmentor {in}/best.pth out"),
    "convert over a model": Case(
        "convert ovsegmentor {in}/best.pth out --overwrite",
        "convert ovsegmentor {in}/other.pth out",
        slow=True,
    ),
    "convert-coco": Case("convert-coco {in}/coco -o out --nproc 1"),
    "data import": Case("data import voc-colour {in}/voc --output out --nproc 1"),
    "data import over a data set": Case(
        "data import voc-colour {in}/voc --output out --nproc 1 --overwrite",
        "data import voc-colour {in}/voc --output out --nproc 1",
        slow=True,
    ),
    "pretrain": Case(PRETRAIN, again="--resume"),
    "pretrain over a model": Case(
        PRETRAIN + " --overwrite", "convert ovsegmentor {in}/best.pth out", slow=True
    ),
    "save": Case("save seeded:0 out"),
    "save over a model": Case("save seeded:1 out --overwrite", "save seeded:0 out"),
    "world": Case("world 3"),
    "world over a world": Case("world 3", "world 2", slow=True),
    "export": Case("export --model {in}/small --output out", slow=True),
    "quickstart": Case("quickstart --images 8 --device cpu --output out", slow=True),
}


def save(weights, folder, *flags):
    """Not a command, but what the Python API writes."""
    model = Talk2DINO.from_pretrained("toy", device="cpu")
    if weights != "seeded:0":
        with torch.no_grad():
            model.projection.linear_layer.weight.add_(1)
    try:
        model.save_pretrained(folder, overwrite="--overwrite" in flags)
    except FileExistsError:
        return 2
    return 0


def draw(images):
    write_world("out/world", WorldConfig(int(images), 1, 1, 1, 64), overwrite=True)
    return 0


def run(words):
    other = {"save": save, "world": draw}.get(words[0])
    return other(*words[1:]) if other else main(words)


def in_child(folder, words, log, fatal):
    """Run in `folder`; die before the `fatal`-th change in it, or count them into `log`."""
    os.chdir(folder)
    torch.set_num_threads(1)
    for stream in (1, 2):
        os.dup2(os.open(f"{log}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND), stream)
    here, count = os.path.realpath(folder), 0

    def watch(event, arguments):
        nonlocal count
        written = event == "open" and isinstance(arguments[2], int) and arguments[2] & 3
        if not (written or event in CHANGES) or not isinstance(arguments[0], (str, os.PathLike)):
            return
        if os.path.abspath(arguments[0]).startswith(here + os.sep):
            count += 1
            if count == fatal:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    code = run(words)
    Path(log).write_text(str(count))
    sys.exit(code)


def tree(folder):
    """Relative path -> content of every file below a folder, without what differs in any case."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_dir():
            found[name] = "folder"
        elif path.suffix == ".npz":
            with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as arrays:
                found[name] = {member: arrays.read(member) for member in arrays.namelist()}
        elif path.suffix == ".json" and path.stem != "ablation":
            content = json.loads(path.read_text())
            found[name] = {k: v for k, v in dict(content).items() if k not in VOLATILE}
        elif path.name.startswith(("table_", "report.html", "r.html", "ablation.")):
            found[name] = "differs by time and place"
        else:
            found[name] = path.read_bytes()
    return found


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kills") / "in"
    metafile = write_captions(folder / "images")
    (folder / "images" / "0.png").write_bytes(b"")  # a failure that is to be reported
    good = write_captions(folder / "good")
    assert metafile.name == good.name
    write_recipe(folder / "recipe.yaml", train={"num_epochs": 2, "save_best_model": True})
    write_features(features(), folder / "train.pth")
    toy = {
        "model": {"dino_embed_dim": 192, "num_attn_head": 3},
        "train": {"num_epochs": 1, "save_best_model": False},
    }
    frozen = {"vision_model": "toy", "text_model": "toy", "resize_dim": 56, "crop_dim": 56}
    (folder / "pictures.yaml").write_text(yaml.safe_dump({**toy, "features": frozen}))
    (folder / "one.yaml").write_text(yaml.safe_dump(recipe_values(good, epochs=1, batch_size=6)))
    write_world(folder / "world", WorldConfig(1, 1, 3, 1, 64))
    lines = (f"{n}.jpg\ta dog, number {n} of cats\n" for n in range(300))
    (folder / "cc.tsv").write_text("".join(lines))
    record = '{"filename": "a.jpg", "caption": "a dog"}\n'
    (folder / "lines.json").write_text(record * 3)
    words = ["prepare-captions", "filter", "--metafile", str(folder / "cc.tsv"), "--processors"]
    assert main([*words, "1", "--lemmas", "lemminflect", "--dstdir", str(folder / "parts")]) == 0
    for seed, name in enumerate(("best.pth", "other.pth")):
        state = seeded_weights(get_preset("ovsegmentor_toy"), seed, "stage1")
        torch.save({"model": state}, folder / name)
    for name in ("1", "2", "3"):
        path = folder / "coco" / "annotations" / "val2017" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), int(name)).save(path)
        for kind in ("SegmentationClass", "JPEGImages"):
            (folder / "voc" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (128, 0, 0)).save(folder / "voc/SegmentationClass" / path.name)
        Image.new("RGB", (4, 4)).save(folder / "voc/JPEGImages" / f"{name}.jpg")
    small = Talk2DINO.from_pretrained("toy", device="cpu")
    small.save_pretrained(folder / "small", projection_only=True)
    words = EXTRACT.replace("{in}", str(folder)).split()[:-1]
    store = str(folder / "store.pth")
    assert main([*words, store, "--extract_disentangled_self_attn"]) in (0, 1)
    for seed in ("0", "1"):
        words = EVALUATE.replace("{in}", str(folder)).replace("seeded:0", f"seeded:{seed}").split()
        assert main([*words[:-1], str(folder / "results" / seed)]) == 0
        for path in (folder / "results" / seed).glob("toy_toy_*"):
            shutil.move(path, folder / f"{seed}{path.suffix}")
    return folder


@pytest.fixture
def start(fork_server, inputs, tmp_path):
    """Run a line in a folder, to its end or to a change; returns code and number of changes."""

    def start(folder, line, fatal=0, *flags):
        folder.mkdir(exist_ok=True)
        words = [*(word.replace("{in}", str(inputs)) for word in line.split()), *flags]
        log = tmp_path / f"{folder.name}.log"
        process = fork_server.Process(target=in_child, args=(folder, words, log, fatal))
        process.start()
        process.join()
        start.said = log.with_suffix(".log.txt").read_text()
        return process.exitcode, int(log.read_text()) if not fatal else 0

    return start


@pytest.mark.parametrize("name", CASES)
def test_a_killed_command_goes_on_to_the_same_bytes(start, tmp_path, name):
    case = CASES[name]
    if case.slow and KILLS == 1:
        pytest.skip("takes long: TALK2DINO_KILLS=10 runs it")
    calm = tmp_path / "calm"
    if case.before:
        assert start(calm, case.before)[0] in (0, 1), start.said
        shutil.copytree(calm, tmp_path / "before")
    code, changes = start(calm, case.line)
    assert code in (0, 1), start.said  # 1: a picture was left out
    expected = tree(calm)
    moments = random.Random(name)
    for kill in range(KILLS):
        folder = tmp_path / f"killed{kill}"
        if case.before:
            shutil.copytree(tmp_path / "before", folder)
        fatal = moments.randint(1, changes)
        died, _ = start(folder, case.line, fatal)
        assert died == -signal.SIGKILL, start.said
        found, _ = start(folder, case.line, 0, *case.again.split())
        where = f"killed at change {fatal} of {changes}: {start.said}"
        assert found == code or tree(folder) == expected, where
        assert sorted(tree(folder)) == sorted(expected), where
        assert tree(folder) == expected, where


@pytest.mark.parametrize("limit", [2000, *([0] if KILLS > 1 else [])])
@pytest.mark.parametrize("name", [n for n, case in CASES.items() if not (case.slow or case.before)])
def test_a_full_disk_is_one_sentence(fork_server, inputs, tmp_path, name, limit):
    words = [word.replace("{in}", str(inputs)) for word in CASES[name].line.split()]
    log = tmp_path / "log"
    process = fork_server.Process(target=without_room, args=(tmp_path, words, log, limit))
    process.start()
    process.join()
    said = (tmp_path / "log.txt").read_text()
    assert "Traceback" not in said
    assert process.exitcode == 0 or "error: " in said, said
    assert process.exitcode in (0, 1, 2), said
    assert not list(tmp_path.rglob(".*tmp*"))


def without_room(folder, words, log, limit):
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    Path(f"{log}.txt").touch()
    os.chdir(folder)
    torch.set_num_threads(1)
    reader, writer = os.pipe()
    os.dup2(writer, 1)
    os.dup2(writer, 2)
    os.write(writer, b"said: ")  # a pipe with nothing in it cannot be read below
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        code = run(words)
    except OSError as error:  # of the Python API
        code = print(f"error: {error}") or 1
    except Exception:
        import traceback

        traceback.print_exc()
        code = 3
    sys.stdout.flush()
    sys.stderr.flush()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
    os.set_blocking(reader, False)
    Path(f"{log}.txt").write_bytes(os.read(reader, 60_000) or b"")
    sys.exit(code)
