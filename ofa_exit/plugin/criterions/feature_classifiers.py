"""BLIPEE's feature classifiers, the discriminators that exits are trained against."""

from torch import Tensor, nn


class FeatureClassifier(nn.Sequential):
    """D of BLIPEE Eqs. 2 and 3: is a feature the final layer's (> 0) or an exit's (< 0)?

    An MLP with one hidden layer and LeakyReLU (Section 4). features [..., C] -> scores [...],
    the logits of D.
    """

    def __init__(self, dim: int, hidden: int = 3072) -> None:
        super().__init__(nn.Linear(dim, hidden), nn.LeakyReLU(), nn.Linear(hidden, 1))

    def forward(self, features: Tensor) -> Tensor:
        return super().forward(features).squeeze(-1)
