"""The error type of the emoji builder."""


class EmojiDataError(Exception):
    """An error of the emoji builder: what went wrong, where, and the remedy."""
