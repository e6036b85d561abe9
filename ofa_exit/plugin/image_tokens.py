"""The option of image tokens that exit one by one."""

from typing import Any, Optional

from ofa_exit.plugin.drafts import is_lossless
from ofa_exit.policies.thresholds import parse_thresholds, reject_wrong_count
from ofa_exit.runtime.token_exits import TokenExits

FLAG = "--exit-image-tokens"


def build_token_exits(cfg: Any) -> Optional[TokenExits]:
    """Return how image tokens exit; None without ``--exit-image-tokens``.

    Raises:
        ValueError: the shares make no sense, or do not go with other options.
    """
    given = getattr(cfg, "exit_image_tokens", None)  # tasks of older checkpoints lack it
    if given is None:
        return None
    if is_lossless(cfg):
        raise ValueError(
            f"--exit-lossless and {FLAG} {given}: captions would not be those of the whole image. "
            "Leave one of them out"
        )
    try:
        return TokenExits(parse_thresholds(given))
    except ValueError as error:
        raise ValueError(f"{FLAG} {given}: {error}") from None


def reject_token_misfit(exits: Optional[TokenExits], encoder_layers: int) -> None:
    """Raise ValueError if a list of shares does not have one number per layer of the encoder."""
    if exits is not None:
        reject_wrong_count(FLAG, exits.shares, encoder_layers, "encoder")
