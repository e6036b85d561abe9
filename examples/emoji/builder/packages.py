"""The npm packages of the artwork and the names: fetching, unpacking and reading them."""

from __future__ import annotations

import json
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .errors import EmojiDataError


@dataclass(frozen=True)
class Package:
    """One npm package at a fixed version; `folder` is its folder once unpacked."""

    name: str
    version: str

    @property
    def folder(self) -> str:
        return f"{self.name.lstrip('@').replace('/', '-')}-{self.version}"

    @property
    def spec(self) -> str:
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class ArtworkSet:
    """A published emoji set; sets of one `family` show closely related drawings."""

    name: str
    family: str
    package: Package
    license: str
    author: str
    source: str


NAMES = Package("emojibase-data", "17.0.0")

ARTWORK = (
    ArtworkSet(
        "noto", "noto", Package("@iconify-json/noto", "1.2.9"),
        "Apache-2.0", "Google Inc", "https://github.com/googlefonts/noto-emoji",
    ),
    ArtworkSet(
        "noto-v1", "noto", Package("@iconify-json/noto-v1", "1.2.5"),
        "Apache-2.0", "Google Inc", "https://github.com/googlefonts/noto-emoji",
    ),
    ArtworkSet(
        "fluent", "fluent", Package("@iconify-json/fluent-emoji", "1.2.7"),
        "MIT", "Microsoft Corporation", "https://github.com/microsoft/fluentui-emoji",
    ),
    ArtworkSet(
        "fluent-flat", "fluent", Package("@iconify-json/fluent-emoji-flat", "1.2.6"),
        "MIT", "Microsoft Corporation", "https://github.com/microsoft/fluentui-emoji",
    ),
    ArtworkSet(
        "twemoji", "twemoji", Package("@iconify-json/twemoji", "1.2.5"),
        "CC-BY-4.0", "Twitter, Inc and other contributors", "https://github.com/jdecked/twemoji",
    ),
)  # fmt: skip


def fetch(package: Package, cache: Path) -> Path:
    """Return the folder of the unpacked package; fetch it by `npm pack` unless it is cached.

    Raises:
        EmojiDataError: npm is missing or fails.
    """
    target = cache / package.folder
    if (target / "package.json").is_file():
        return target
    npm = shutil.which("npm")
    if npm is None:
        raise EmojiDataError(
            f"npm not found, and {target} does not hold {package.spec}. Install Node.js (it brings "
            "npm), or unpack the packages yourself and name their folder with --packages."
        )
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        done = subprocess.run(
            [npm, "pack", package.spec, "--silent"], cwd=scratch, capture_output=True, text=True
        )
        archives = list(Path(scratch).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            raise EmojiDataError(
                f"`npm pack {package.spec}` failed ({done.returncode}): "
                f"{done.stderr.strip()[-500:]}\n"
                "Check the network and npm's registry setting, or use --packages."
            )
        with tarfile.open(archives[0]) as archive:
            archive.extractall(scratch, filter="data")
        (Path(scratch) / "package").rename(target)
    return target


def locate(package: Package, folder: Path) -> Path:
    """Return the folder of a package that the user unpacked in `folder`.

    Accepted: `<folder>/<package folder>`, and npm's own `<folder>/<name>` (node_modules).
    """
    for candidate in (folder / package.folder, folder / package.name):
        if (candidate / "package.json").is_file():
            found = read_json(candidate / "package.json").get("version")
            if found != package.version:
                raise EmojiDataError(
                    f"{candidate} holds version {found}, expected {package.version}. "
                    f"Fetch it with `npm pack {package.spec}`."
                )
            return candidate
    raise EmojiDataError(
        f"{folder} holds neither {package.folder}/ nor {package.name}/ of {package.spec}. "
        f"Fetch it with `npm pack {package.spec}` and unpack it there, or leave --packages out."
    )


def read_json(path: Path) -> Any:
    """Read a JSON file; raise EmojiDataError with its name if it is missing or broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EmojiDataError(
            f"{path}: cannot be read as JSON ({error}). Delete its folder and build again."
        ) from error
