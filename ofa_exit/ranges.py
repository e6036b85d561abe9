"""Numbers that an option may have, and the error that names the option, its value and the range."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Optional

from ofa_exit.spelling import flag

LONGEST_VALUE = 80  # characters of a value that a message shows


@dataclass(frozen=True)
class Range:
    """Finite numbers between two ends.

    Args:
        least: smallest number; None: any.
        most: largest number; None: any.
        above: number that all must exceed.
        below: number that none may reach.
        is_whole: whole numbers only.
        off: a number outside that switches the option off.
    """

    least: Optional[float] = None
    most: Optional[float] = None
    above: Optional[float] = None
    below: Optional[float] = None
    is_whole: bool = False
    off: Optional[float] = None

    def remedy(self, value: Any) -> Optional[str]:
        """Return what to give in place of ``value``; None for one inside."""
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            return "give a number"
        if isinstance(value, float) and not math.isfinite(value):
            return "give a finite number"
        if abs(value) > sys.float_info.max:  # a whole number that no float holds
            return "give a smaller number"
        if self.is_whole and not isinstance(value, int):
            return "give a whole number"
        if value == self.off:
            return None
        if self.least is not None and value < self.least:
            return f"give at least {self.least:,}"
        if self.most is not None and value > self.most:
            return f"give at most {self.most:,}"
        if self.above is not None and value <= self.above:
            return f"give more than {self.above:,}"
        if self.below is not None and value >= self.below:
            return f"give less than {self.below:,}"
        return None


def whole(
    least: Optional[int] = None, most: Optional[int] = None, off: Optional[int] = None
) -> Range:
    """Return a range of whole numbers."""
    return Range(least, most, is_whole=True, off=off)


def check_ranges(
    values: Any, ranges: Mapping[str, Range], named: Callable[[str], str] = flag
) -> None:
    """Raise ValueError for the first option outside its range.

    Args:
        values: options as attributes. Those that are missing or None are not checked.
        ranges: by option.
        named: how a message calls an option.
    """
    for option, allowed in ranges.items():
        value = getattr(values, option, None)
        remedy = None if value is None else allowed.remedy(value)
        if remedy:
            raise ValueError(f"{named(option)} is {_shown(value)}: {remedy}")


def _shown(value: Any) -> str:
    text = repr(value)  # a text has quotes: '5' is no number
    return text if len(text) <= LONGEST_VALUE else f"{text[:LONGEST_VALUE]}…"
