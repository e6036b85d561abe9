"""Licences and attribution of the artwork and the names, part of every build."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from ofa_exit.data.files import write_bytes

from .packages import ARTWORK, NAMES

TEXTS = Path(__file__).parents[1] / "LICENSES"

NOTICE_HEAD = """\
Attribution of the emoji data
=============================

The pictures are renderings of the artwork below: SVG drawings taken unchanged from the named npm
packages, drawn on white, scaled to a few dozen pixels and stored as WebP. Nothing else was changed.
The captions and hypotheses are made from the names and shortcodes of emojibase-data.

"""


def write_licenses(folder: Path, packages: Mapping[str, Path]) -> list[str]:
    """Write NOTICE.txt and LICENSES/ to `folder`; return their relative names."""
    notice = NOTICE_HEAD
    for one in ARTWORK:
        notice += (
            f"{one.name}: {one.package.spec}\n  artwork by {one.author}, {one.source}\n"
            f"  licence {one.license}, text in LICENSES/{license_file(one.license, one.family)}\n\n"
        )
    notice += (
        f"names: {NAMES.spec}\n  by Miles Johnson, https://github.com/milesj/emojibase\n"
        "  licence MIT, text in LICENSES/MIT-emojibase.txt\n"
    )
    contents = {"NOTICE.txt": notice.encode("utf-8")}
    for text in {license_file(one.license, one.family) for one in ARTWORK}:
        contents[f"LICENSES/{text}"] = (TEXTS / text).read_bytes()
    contents["LICENSES/MIT-emojibase.txt"] = (packages["names"] / "LICENSE").read_bytes()
    for name, content in contents.items():
        write_bytes(folder / name, content)
    return sorted(contents)


def license_file(license: str, family: str) -> str:
    """Return the file name of the licence text of an artwork family."""
    return f"MIT-{family}.txt" if license == "MIT" else f"{license}.txt"
