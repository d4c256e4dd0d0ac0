"""The published feature file: every record a dict with its own tensors, unpickled as a whole."""

import torch


def save_records(images, annotations, visual, text, path):
    """Records with tensors inside, as published.

    Args:
        images, annotations: COCO records.
        visual, text: the tensor of each; the same one may stand in many records.
        path: the file.
    """
    images = [
        {**image, "disentangled_self_attn": value}
        for image, value in zip(images, visual, strict=True)
    ]
    annotations = [
        {**annotation, "ann_feats": value}
        for annotation, value in zip(annotations, text, strict=True)
    ]
    torch.save({"images": images, "annotations": annotations}, path)


def open_and_read_batch(path, captions):
    """Unpickle everything, find the image of every caption, and stack one batch."""
    data = torch.load(path, weights_only=True)
    images = {image["id"]: image for image in data["images"]}
    chosen = [data["annotations"][number] for number in captions]
    visual = torch.stack(
        [images[annotation["image_id"]]["disentangled_self_attn"] for annotation in chosen]
    )
    return visual, torch.stack([annotation["ann_feats"] for annotation in chosen])
