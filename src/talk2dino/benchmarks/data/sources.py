"""Where each data set comes from, how many images it officially has, and how lists are mistaken."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Source:
    """What is publicly known about one benchmark's files."""

    counts: tuple[int, ...]
    """Official numbers of images; more than one where two lists are in use."""
    get: str
    """Where to get images and labels, and what to unpack where."""
    other_lists: Mapping[int, str]
    """Number of images of another list -> which list that is."""
    outside: str
    """What labels with values that are no class probably are."""
    raw_suffix: str = ""
    """Ending of the label files that `data convert` reads, in place of `label_suffix`."""
    lookalikes: Mapping[str, str] = field(default_factory=dict)
    """Beginning of a folder's name -> why what is in it cannot stand in."""
    most_ignored: float = 1.0
    """Largest share of 255 among the labels; more, if 0 was a class and has become 255."""


_VOC = Source(
    counts=(1449,),
    get="VOCtrainval_11-May-2012.tar, http://host.robots.ox.ac.uk/pascal/VOC/voc2012/; unpack it "
    "in {root}",
    other_lists={
        1464: "ImageSets/Segmentation/train.txt",
        2913: "ImageSets/Segmentation/trainval.txt",
        5823: "ImageSets/Main/val.txt, the list for classification",
        10582: "the augmented training list (trainaug.txt)",
        17125: "all images of VOC2012",
    },
    outside="these are other labels, such as numbers of objects",
    lookalikes={
        "SegmentationClassAug": "SBD's labels, drawn by others, without the border of 255 that is "
        "not evaluated: their numbers are not comparable",
        "SegmentationObject": "numbers of objects, not classes",
    },
    most_ignored=0.5,
)
_CONTEXT = Source(
    counts=(5104, 5105),  # trainval_merged.json, and the list of the original annotation
    get="VOCtrainval_03-May-2010.tar, http://host.robots.ox.ac.uk/pascal/VOC/voc2010/; unpack it "
    "in {root}. Masks and lists are no part of it: get trainval_merged.json, "
    "https://codalabuser.blob.core.windows.net/public/trainval_merged.json; put it into "
    "{root}/VOCdevkit/VOC2010 and run: "
    "python -m talk2dino data convert --data_root {root} --benchmarks context",
    other_lists={
        964: "ImageSets/Segmentation/val.txt of VOC2010",
        4996: "ImageSets/SegmentationContext/train.txt",
        4998: "the original training list of PASCAL Context",
        10100: "training and validation together",
        10103: "training and validation together",
    },
    outside="these are the 459 labels of PASCAL Context; convert trainval_merged.json",
    most_ignored=0.5,
)
_COCO = Source(
    counts=(5000,),
    get="val2017.zip, http://images.cocodataset.org/zips/val2017.zip; unpack it in "
    "{root}/coco_stuff164k/images; and stuffthingmaps_trainval2017.zip, "
    "http://calvin.inf.ed.ac.uk/wp-content/uploads/data/cocostuffdataset/"
    "stuffthingmaps_trainval2017.zip; unpack it in {root}/coco_stuff164k/annotations, then run: "
    "python -m talk2dino data convert --data_root {root} --benchmarks {key}",
    other_lists={118287: "train2017", 40504: "val2014"},
    outside="these are raw COCO-Stuff ids, not TrainIds; remove and convert them",
    raw_suffix=".png",
    lookalikes={
        "panoptic_": "panoptic labels, in colours",
        "stuff_": "stuff alone, without objects",
    },
)

SOURCES = {
    "voc": _VOC,
    "voc20": _VOC,
    "context": _CONTEXT,
    "context59": _CONTEXT,
    "coco_object": _COCO,
    "coco_stuff": _COCO,
    "cityscapes": Source(
        counts=(500,),
        get="leftImg8bit_trainvaltest.zip and gtFine_trainvaltest.zip, "
        "https://www.cityscapes-dataset.com/downloads/ (needs an account); unpack them in "
        "{root}/cityscapes, then run: "
        "python -m talk2dino data convert --data_root {root} --benchmarks cityscapes",
        other_lists={2975: "the training set", 1525: "the test set, which has no labels"},
        outside="these are labelIds under the name of TrainIds; remove and convert them",
        raw_suffix="_gtFine_labelIds.png",
        lookalikes={"gtCoarse": "coarse labels, which are not evaluated"},
    ),
    "ade20k": Source(
        counts=(2000,),
        get="ADEChallengeData2016.zip, "
        "http://data.csail.mit.edu/places/ADEchallenge/ADEChallengeData2016.zip; "
        "unpack it in {root}/ade",
        other_lists={20210: "the training set"},
        outside="these are not the 150 classes of ADEChallengeData2016",
        lookalikes={"ADE20K_20": "the full release, another data set than ADEChallengeData2016"},
        most_ignored=0.0,
    ),
}
"""Benchmark -> its source; `{root}` and `{key}` in the texts are the data root and the key."""


def check_data_root(root: str | Path) -> None:
    """Raise FileNotFoundError unless the folder of all benchmarks is there."""
    if not Path(root).is_dir():
        raise FileNotFoundError(
            f"there is no data folder {root}. Choose it with --data_root; `python -m talk2dino "
            "data check` says what belongs there and where to get it. (The drawn world is in "
            "quickstart/data after `python -m talk2dino quickstart`.)"
        )
