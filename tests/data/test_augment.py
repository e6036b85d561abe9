"""Random views of training images: which there are, and that they follow seed, epoch and row."""

import base64
from collections import Counter

import numpy as np
import pytest
import torch
from helpers import task_files as files
from PIL import Image
from torch.utils.data import DataLoader

from ofa_exit.data.augment import AUGMENTATIONS, Augmentation, augmentation_kinds
from ofa_exit.plugin.errors import UsageError

IMAGE = torch.arange(3 * 4 * 4).view(3, 4, 4).float()


def key(image: torch.Tensor) -> tuple:
    return tuple(image.flatten().tolist())


def symmetries(*, flips: bool, turns: bool) -> set[tuple]:
    """All views, made by PIL."""
    found = set()
    for mirrored in (False, True)[: 1 + flips]:
        for degrees in (0, 90, 180, 270)[: 1 + 3 * turns]:
            planes = []
            for plane in IMAGE:
                image = Image.fromarray(plane.numpy())
                if mirrored:
                    image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                planes.append(np.asarray(image.rotate(degrees)))
            found.add(tuple(np.stack(planes).flatten().tolist()))
    return found


@pytest.mark.parametrize(
    ("kinds", "flips", "turns"),
    [("flips", True, False), ("rotations", False, True), ("rotations, flips", True, True)],
)
def test_views_are_those_of_a_square_and_equally_frequent(kinds, flips, turns):
    augment = Augmentation(augmentation_kinds(kinds), seed=1)
    counts = Counter(key(augment(IMAGE, row)) for row in range(2000))
    expected = symmetries(flips=flips, turns=turns)
    assert set(counts) == expected
    assert min(counts.values()) > 0.75 * 2000 / len(expected)


def views(augment: Augmentation, epoch: int) -> list[tuple]:
    augment.set_epoch(epoch)
    return [key(augment(IMAGE, row)) for row in range(20)]


def test_a_view_follows_seed_epoch_and_row():
    first, other = Augmentation(AUGMENTATIONS, seed=1), Augmentation(AUGMENTATIONS, seed=2)
    assert views(first, 1) == views(Augmentation(AUGMENTATIONS, seed=1), 1)
    assert views(first, 1) != views(first, 2) and len(set(views(first, 1))) > 1
    assert views(first, 1) != views(other, 1)
    assert views(first, 1) == views(first, 1)  # also after another epoch


def folder(path):
    """Rows whose images differ from their mirror images."""
    files.caption_folder(path)
    image = Image.new("RGB", (32, 32), "red")
    image.paste("blue", (0, 0, 8, 32))
    image.save(path / "image.png")
    field = base64.urlsafe_b64encode((path / "image.png").read_bytes()).decode()
    for name in ("train", "valid"):
        rows = [files.caption_row(number, image=field) for number in range(12)]
        files.write_tsv(path / f"{name}.tsv", rows)
    return path


def loaded(task, split: str, epoch: int, workers: int = 0) -> list[tuple]:
    task.load_dataset(split, epoch=epoch)
    dataset = task.dataset(split)
    loader = DataLoader(dataset, 4, collate_fn=dataset.collater, num_workers=workers)
    return [key(image) for batch in loader for image in batch["net_input"]["patch_images"]]


def test_the_task_changes_training_images_alone(tmp_path):
    data = folder(tmp_path / "data")
    plain = files.setup("mue_caption", data)
    task = files.setup("mue_caption", data, augment="flips,rotations", seed=1)
    assert len(set(loaded(plain, "train", 1))) == 1
    first = loaded(task, "train", 1)
    assert len(set(first)) > 1 and loaded(task, "train", 1, workers=2) == first
    assert loaded(task, "train", 2) != first
    assert loaded(task, "valid", 1) == loaded(plain, "valid", 1)
    task.reads_checkpoint = True
    task.load_dataset("train", task_cfg=task.cfg)  # generation from training rows
    assert task.dataset("train").rows.examples.augment is None


def test_workers_that_outlive_an_epoch_follow_it(tmp_path):
    task = files.setup("mue_caption", folder(tmp_path / "data"), augment="rotations", seed=1)
    expected = [loaded(task, "train", epoch) for epoch in (1, 2)]
    task.load_dataset("train", epoch=1)
    dataset = task.dataset("train")
    loader = DataLoader(
        dataset, 4, collate_fn=dataset.collater, num_workers=1, persistent_workers=True
    )
    for epoch, images in enumerate(expected, start=1):
        dataset.set_epoch(epoch)
        found = [key(image) for batch in loader for image in batch["net_input"]["patch_images"]]
        assert found == images


@pytest.mark.parametrize("augment", ["flip", "flips,crops", ","])
def test_unknown_kinds_are_rejected(augment, tmp_path):
    with pytest.raises(UsageError, match=f"--augment '{augment}': choose from flips, rotations"):
        files.setup("mue_caption", files.caption_folder(tmp_path / "data"), augment=augment)


def test_a_training_takes_the_option(tmp_path):
    """Two trainings of one seed are the same; without the option they differ."""
    data = folder(tmp_path / "data")
    made = [
        torch.load(
            files.train("mue_caption", data, tmp_path / name, "--seed", "3", *more, updates=2),
            weights_only=False,
        )["model"]
        for name, *more in (
            ("a", "--augment", "flips,rotations"),
            ("b", "--augment", "flips,rotations"),
            ("c",),
        )
    ]
    for name in [name for name in made[0] if "embed_images" in name and name.endswith("weight")]:
        assert torch.equal(made[0][name], made[1][name])
        assert not torch.equal(made[0][name], made[2][name])
