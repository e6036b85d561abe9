"""Random views of training images, the same for the same seed, epoch and row."""

import random
from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def _flip(image: Tensor, generator: random.Random) -> Tensor:
    return image.flip(-1) if generator.random() < 0.5 else image


def _rotate(image: Tensor, generator: random.Random) -> Tensor:
    return torch.rot90(image, generator.randrange(4), (-2, -1))


# Kind → function of an image, Float [3, S, S], and random numbers.
AUGMENTATIONS: dict[str, Callable[[Tensor, random.Random], Tensor]] = {
    "flips": _flip,
    "rotations": _rotate,
}


def augmentation_kinds(text: str) -> list[str]:
    """Return the kinds of a list separated by commas. Raises ValueError for unknown ones."""
    kinds = [part.strip() for part in text.split(",") if part.strip()]
    unknown = [kind for kind in kinds if kind not in AUGMENTATIONS]
    if unknown or not kinds:
        raise ValueError(f"--augment {text!r}: choose from {', '.join(AUGMENTATIONS)}")
    return [kind for kind in AUGMENTATIONS if kind in kinds]


class Augmentation:
    """Mirrors (``flips``) and turns by a quarter (``rotations``) at random.

    Both together give the eight views of a square with equal probability.

    Args:
        kinds: those to apply, keys of AUGMENTATIONS.
        seed: of the training.
    """

    def __init__(self, kinds: Sequence[str], seed: int):
        self.kinds = tuple(kinds)
        self.seed = seed
        # Shared, because workers may live longer than an epoch.
        self._epoch = torch.ones(1, dtype=torch.long).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Change the views from those of another epoch."""
        self._epoch[0] = epoch

    def __call__(self, image: Tensor, row: int) -> Tensor:
        """Return a view of the image of a row, Float [3, S, S]."""
        generator = random.Random(f"{self.seed} {int(self._epoch)} {row}")
        for kind in self.kinds:
            image = AUGMENTATIONS[kind](image, generator)
        return image
