"""The error type of the emoji builder."""


class EmojiDataError(Exception):
    """A refusal of the emoji builder: what went wrong, where, and the remedy."""
