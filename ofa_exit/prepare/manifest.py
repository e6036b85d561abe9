"""FILE.manifest.json: the inputs of a prepared file, and the size and hash of the complete file.

``output`` has name, rows, bytes, modification time (ns) and SHA-256 of the file, ``inputs`` the
options and the hashes of the sources, ``counts`` the numbers found and published. ``skipped``
counts the records without a row because they or their images are bad, and ``problems`` is the file
that lists them. ``left_out`` counts the records that have no row by the rules of the format.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ofa_exit.data.files import sha256_of, write_bytes
from ofa_exit.regular_files import regular_file

from .records import PrepareError

# Layout of the rows: files of another layout are written again.
FORMAT = 1


@functools.lru_cache(maxsize=64)
def _digest(path: Path, size: int, mtime: int) -> str:
    return sha256_of(path)


def fingerprint(sources: Iterable[Path], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``inputs`` of a manifest. Files with equal inputs have equal rows."""
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


def write_manifest(
    path: Path, rows: int, status: os.stat_result, digest: str, **content: Any
) -> None:
    """Write the manifest of ``path`` atomically.

    Args:
        status: of the finished file, which may still have another name.
    """
    output = {
        "file": path.name,
        "rows": rows,
        "bytes": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "sha256": digest,
    }
    write_json(manifest_path(path), {"output": output, **content})


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    text = json.dumps(content, indent=1, sort_keys=True, ensure_ascii=False) + "\n"
    # Names that are not UTF-8 hold lone surrogates. Their escapes are JSON, too.
    write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_json(path: Path) -> dict[str, Any] | None:
    """Return the object in a JSON file, or None if there is none."""
    try:
        content = json.loads(regular_file(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return content if isinstance(content, dict) else None


def check_release(
    path: Path, inputs: Mapping[str, Any], partial: Mapping[str, Any] | None = None
) -> None:
    """Raise PrepareError if ``path``, or its partial file, belongs to another data set.

    That is the case if no annotation file has the same name. Such a file took long to make and is
    not overwritten.

    Args:
        inputs: of the new file.
        partial: inputs of the partial file.
    """
    done = _of_same_size(path)
    for other in (done["inputs"] if done is not None else None, partial):
        before = _annotations(other) if other is not None else set()
        if before and not before & _annotations(inputs):
            raise PrepareError(
                f"{path} was made from {', '.join(sorted(before))}. Choose another folder, or "
                "remove it"
            )


def _annotations(inputs: Mapping[str, Any]) -> set[str]:
    """Return the names of the published files among the sources."""
    sources = inputs.get("sources")
    return set(sources if isinstance(sources, dict) else ()) - {"answers.txt"}


def finished(path: Path) -> dict[str, Any] | None:
    """Return the manifest of ``path`` if the file is the one that it describes, else None.

    A file of another modification time is compared by its hash, which takes minutes for a large
    one.
    """
    manifest = _of_same_size(path)
    if manifest is None:
        return None
    output = manifest["output"]
    is_same = output.get("mtime_ns") == path.stat().st_mtime_ns
    return manifest if is_same or output.get("sha256") == sha256_of(path) else None


def _of_same_size(path: Path) -> dict[str, Any] | None:
    """Return the manifest of ``path`` if the file has the size that it names, else None."""
    manifest = read_json(manifest_path(path))
    if manifest is None or not path.is_file():
        return None
    manifest = {"skipped": 0, "folders": [], **manifest}  # lists of words and answers have neither
    kinds = {"output": dict, "inputs": dict, "skipped": int, "folders": list}
    if not all(isinstance(manifest.get(name), kind) for name, kind in kinds.items()):
        return None
    output = manifest["output"]
    is_complete = output.get("bytes") == path.stat().st_size
    return manifest if is_complete and isinstance(output.get("rows"), int) else None
