"""Training rows that share an image: kept together, in one view, and encoded once."""

import base64
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import small_models
from helpers import task_files as files
from PIL import Image

from ofa_exit.data.collate import collate
from ofa_exit.data.image_groups import image_groups
from ofa_exit.data.tsv import TsvFile

CAPTIONS = [3, 1, 2, 3, 1]  # captions of each image of the file
IMAGE_OF_ROW = [image for image, count in enumerate(CAPTIONS) for _ in range(count)]


def field(path: Path, number: int) -> str:
    """An image of its own that differs from its mirror image."""
    image = Image.new("RGB", (32, 32), (40 * number, 200, 0))
    image.paste("blue", (0, 0, 8, 32))
    image.save(path / "image.png")
    return base64.urlsafe_b64encode((path / "image.png").read_bytes()).decode()


@pytest.fixture
def data(tmp_path):
    folder = files.caption_folder(tmp_path / "data")
    fields = [field(tmp_path, number) for number in range(len(CAPTIONS))]
    rows = [files.caption_row(row, image=fields[image]) for row, image in enumerate(IMAGE_OF_ROW)]
    files.write_tsv(folder / "train.tsv", rows)
    return folder


def training_rows(data, **options):
    task = files.setup("mue_caption", data, seed=1, **options)
    task.load_dataset("train")
    return task.dataset("train")


def test_numbers_follow_runs_of_equal_fields(tmp_path):
    fields = ["a", "a", "", "", "b", "a"]
    path = tmp_path / "rows.tsv"
    path.write_text("".join(f"{row}\t{image}\n" for row, image in enumerate(fields)) + "no column")
    file = TsvFile(path, None, ("uniq_id", "image"))
    assert image_groups(file).tolist() == [0, 0, 1, 2, 3, 4, 5]


def test_rows_of_an_image_stay_together(data):
    grouped, plain = (training_rows(data, group_images=group) for group in (True, False))
    orders = set()
    for seed in range(20):
        np.random.seed(seed)
        order = grouped.ordered_indices()
        assert sorted(order) == list(range(len(IMAGE_OF_ROW)))
        images = [IMAGE_OF_ROW[row] for row in order]
        assert sum(a != b for a, b in zip(images, images[1:])) == len(CAPTIONS) - 1
        orders.add(tuple(images))
    assert len(orders) > 10
    np.random.seed(0)
    images = [IMAGE_OF_ROW[row] for row in plain.ordered_indices()]
    assert sum(a != b for a, b in zip(images, images[1:])) > len(CAPTIONS)


def test_an_image_has_one_view_in_an_epoch(data):
    rows = training_rows(data, group_images=True, augment="flips,rotations")
    views = set()
    for epoch in range(1, 9):
        rows.set_epoch(epoch)
        examples = [rows[row] for row in range(3)]
        assert all(torch.equal(example.image, examples[0].image) for example in examples)
        net_input = collate(examples, 1, 32)["net_input"]
        assert net_input["patch_images"].size(0) == 1 and net_input["shared_source"]
        views.add(tuple(examples[0].image.flatten().tolist()))
    assert len(views) > 2


def test_an_image_is_decoded_once(data):
    rows, decoded = training_rows(data, group_images=True), []
    load = rows.rows.examples.load_image
    rows.rows.examples.load_image = lambda *field: decoded.append(field) or load(*field)
    images = [rows[row].image for row in range(len(IMAGE_OF_ROW))]
    assert len(decoded) == len(CAPTIONS)
    assert [image.sum() == images[0].sum() for image in images] == [i == 0 for i in IMAGE_OF_ROW]


def test_other_questions_about_an_image_share_the_image_alone(data):
    rows = training_rows(data, group_images=True)
    examples = [rows[row] for row in range(4)]
    examples[1].source = examples[1].source[:-2]
    assert collate(examples, 1, 32)["net_input"]["shared_source"] is False
    assert "shared_source" not in collate([rows[0], rows[3]], 1, 32)["net_input"]


def test_validation_shares_nothing(data):
    task = files.setup("mue_caption", data, group_images=True)
    task.load_dataset("valid")
    assert task.dataset("valid").rows.examples.groups is None


@pytest.mark.parametrize("split", [True, False])
def test_gradients_are_those_of_every_row_by_itself(split):
    """In eval mode, since batch norm and dropout look at the batch."""
    rows = torch.tensor([0, 0, 1, 2, 2, 2])
    every = small_models.batch(6)
    first = torch.tensor([0, 2, 3])
    for name in ("src_tokens", "src_lengths"):
        every[name] = every[name][first][rows]
    every["patch_images"] = every["patch_images"][first][rows]
    every["patch_masks"] = torch.tensor([True, True, False, True, True, True])
    once = {**every, "patch_images": every["patch_images"][first], "image_rows": rows}
    found = []
    for net_input in (every, once | {"shared_source": True}):
        model = small_models.nano(split)
        encoded = []
        model.encoder.layers[0].register_forward_hook(lambda *call, seen=encoded: seen.append(call))
        logits, _ = model(**net_input)
        logits.float().log_softmax(-1)[..., 5].sum().backward()
        sizes = {len(call[2]) for call in encoded}
        found.append((sizes, logits, {n: p.grad for n, p in model.named_parameters()}))
    (all_rows, expected, gradients), (images, logits, shared) = found
    assert (all_rows, images) == ({6}, {3})
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
    for name, gradient in gradients.items():
        if gradient is not None:
            torch.testing.assert_close(shared[name], gradient, atol=1e-4, rtol=1e-4, msg=name)


def test_a_training_takes_the_option(data, tmp_path):
    made = [
        torch.load(
            files.train("mue_caption", data, tmp_path / name, "--seed", "3", *more, updates=2),
            weights_only=False,
        )["model"]["encoder.image_proj.weight"]
        for name, *more in (("a", "--group-images"), ("b", "--group-images"), ("c",))
    ]
    assert torch.equal(made[0], made[1]) and not torch.equal(made[0], made[2])
