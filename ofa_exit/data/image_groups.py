"""Which rows of a file share an image."""

import torch
from torch import Tensor
from tqdm import tqdm

from ofa_exit.data.row_examples import IMAGE_FIELD
from ofa_exit.data.tsv import TsvError, TsvFile


def image_groups(file: TsvFile) -> Tensor:
    """Return the number of each row's image, Long [N], from 0.

    Rows share an image if they follow each other and have the same image field, as in OFA's
    captioning files. A row that cannot be read has a number of its own. Reads the whole file.
    """
    numbers: list[int] = []
    previous = None
    for row in tqdm(range(len(file)), f"{file.path.name}: images", delay=2, leave=False):
        try:
            image = file.row(row)[IMAGE_FIELD]
        except TsvError:
            image = ""
        same = bool(image) and image == previous
        numbers.append(len(numbers) and numbers[-1] + (not same))
        previous = image
    return torch.tensor(numbers)
