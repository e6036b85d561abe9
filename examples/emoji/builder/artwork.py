"""Mapping of emoji to the pictures of each artwork set, and their SVG sources."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .packages import read_json

Icons = Mapping[str, Any]


def normal_key(hexcode: str) -> str:
    """Drop the variation selector FE0F, which the sets use inconsistently."""
    return "-".join(part for part in hexcode.upper().split("-") if part != "FE0F")


def chars_of(folder: Path) -> dict[str, str]:
    """Return emoji key → picture name from the set's `chars.json`, which may be empty."""
    chars = read_json(folder / "chars.json")
    return {normal_key(code): name for code, name in sorted(chars.items())}


def pictures_by_name(icons: Icons, name_to_key: Mapping[str, str]) -> dict[str, str]:
    """Return emoji key → picture name for a set without code points, by the names of others.

    Old releases call ten national flags `flag-for-flag-X`.
    """
    found: dict[str, str] = {}
    for name in sorted({*icons["icons"], *icons.get("aliases", {})}):
        key = name_to_key.get(name.replace("flag-for-flag-", "flag-"))
        if key is not None and (key not in found or name in icons["icons"]):
            found[key] = name
    return found


def svg_of(icons: Icons, name: str) -> str:
    """Return the SVG document of an Iconify picture; resolve aliases and their flips.

    Raises:
        KeyError: the set has no such name.
    """
    flips = {"hFlip": False, "vFlip": False}
    while name not in icons["icons"]:
        alias = icons.get("aliases", {})[name]
        for flip in flips:
            flips[flip] ^= bool(alias.get(flip))
        name = alias["parent"]
    icon = icons["icons"][name]
    size = {side: icon.get(side, icons.get(side, 16)) for side in ("width", "height")}
    left, top = icon.get("left", 0), icon.get("top", 0)
    width, height = size["width"], size["height"]
    body = icon["body"]
    if flips["hFlip"]:
        body = f'<g transform="translate({2 * left + width} 0) scale(-1 1)">{body}</g>'
    if flips["vFlip"]:
        body = f'<g transform="translate(0 {2 * top + height}) scale(1 -1)">{body}</g>'
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'width="{width}" height="{height}" viewBox="{left} {top} {width} {height}">{body}</svg>'
    )
