"""What a prepared file was made from, and whether it is whole: FILE.manifest.json beside it.

``output`` has name, rows, bytes and SHA-256 of the file; ``inputs`` the sources with theirs and the
options; ``counts`` what was found, and the published numbers; ``skipped`` how many records made no
row because they, or their images, are bad, and ``problems`` the file that lists them; ``left_out``
how many made none by the rules of the format.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ofa_exit.data.files import sha256_of, write_bytes

from .records import PrepareError

# Of the rows' layout: files of another layout are made anew.
FORMAT = 1


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime: int) -> str:
    return sha256_of(path)


def fingerprint(sources: Iterable[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """The ``inputs`` of a manifest: two files with the same inputs hold the same rows."""
    return {
        "format": FORMAT,
        "options": dict(options),
        "sources": {
            path.name: {
                "bytes": path.stat().st_size,
                "sha256": _digest(path, path.stat().st_size, path.stat().st_mtime_ns),
            }
            for path in sources
        },
    }


def manifest_path(path: Path) -> Path:
    return path.with_name(path.name + ".manifest.json")


def write_manifest(path: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest of ``path`` atomically."""
    write_json(manifest_path(path), manifest)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    write_bytes(path, text.encode("utf-8"))


def read_json(path: Path) -> dict[str, Any] | None:
    """None where there is none, or none that can be read."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def refuse_another_release(
    path: Path, inputs: Mapping[str, Any], partial: Mapping[str, Any] | None = None
) -> None:
    """Raises PrepareError where ``path``, or what is there of it, is of another data set.

    That is, where none of the annotations is the same by name: such a file was long in the making.
    inputs: of the new one; partial: of a partial file.
    """
    done = finished(path)
    for other in (done["inputs"] if done is not None else None, partial):
        before = _annotations(other) if other is not None else set()
        if before and not before & _annotations(inputs):
            raise PrepareError(
                f"{path} was made of {', '.join(sorted(before))}: choose another folder, or remove "
                "it"
            )


def _annotations(inputs: Mapping[str, Any]) -> set[str]:
    """Names of the published files among the sources; candidates are made from them."""
    return set(inputs.get("sources", ())) - {"answers.txt"}


def finished(path: Path) -> dict[str, Any] | None:
    """The manifest of ``path`` if the file is there in full (its size tells), else None."""
    manifest = read_json(manifest_path(path))
    if manifest is None or not path.is_file():
        return None
    output = manifest.get("output")
    whole = isinstance(output, dict) and output.get("bytes") == path.stat().st_size
    return manifest if whole and "inputs" in manifest else None
