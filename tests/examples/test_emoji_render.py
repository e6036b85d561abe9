"""SVG pictures: flips, frames, background, cache; and fetching packages."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from pathlib import Path

import pytest
from PIL import Image

from examples.emoji.builder import packages, render
from examples.emoji.builder.artwork import normal_key, pictures_by_name, svg_of
from examples.emoji.builder.errors import EmojiDataError
from ofa_exit.data.files import atomic_write, write_bytes

pytest.importorskip("resvg_py")

ICONS = {
    "width": 10,
    "height": 10,
    "icons": {
        "left": {"body": '<rect width="5" height="10" fill="black"/>'},
        "wide": {"body": '<rect width="20" height="10" fill="black"/>', "width": 20},
        "moved": {"body": '<rect x="100" width="5" height="10" fill="black"/>', "left": 100},
    },
    "aliases": {
        "right": {"parent": "left", "hFlip": True},
        "again": {"parent": "right", "hFlip": True},
        "right-moved": {"parent": "moved", "hFlip": True},
    },
}
BLACK, WHITE = (0, 0, 0), (255, 255, 255)


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("left", BLACK, WHITE),
        ("right", WHITE, BLACK),
        ("again", BLACK, WHITE),
        ("moved", BLACK, WHITE),
        ("right-moved", WHITE, BLACK),
    ],
)
def test_flips_and_frames(name: str, left: tuple, right: tuple) -> None:
    picture = render.rasterise(svg_of(ICONS, name), 16)
    assert picture.size == (16, 16)
    assert picture.getpixel((3, 8)) == left
    assert picture.getpixel((12, 8)) == right


def test_wide_drawing_is_centred_on_white() -> None:
    picture = render.rasterise(svg_of(ICONS, "wide"), 16)
    assert picture.size == (16, 16)
    assert picture.getpixel((8, 8)) == BLACK
    assert picture.getpixel((8, 1)) == WHITE == picture.getpixel((8, 14))


def test_unknown_picture() -> None:
    with pytest.raises(KeyError):
        svg_of(ICONS, "nowhere")


def test_names_find_pictures() -> None:
    icons = {"icons": {"flag-for-flag-italy": {}, "dog": {}, "odd": {}}, "aliases": {"hound": {}}}
    known = {"flag-italy": "IT", "dog": "D", "hound": "D"}
    assert pictures_by_name(icons, known) == {"IT": "flag-for-flag-italy", "D": "dog"}
    assert normal_key("2764-fe0f-200d-1f525") == "2764-200D-1F525"


def test_cache_renders_once_and_losslessly(tmp_path, monkeypatch) -> None:
    cache = render.RenderCache(tmp_path, 16)
    first = cache.get("set-1", "left", svg_of(ICONS, "left"))
    picture = Image.open(io.BytesIO(first)).convert("RGB")
    assert picture.tobytes() == render.rasterise(svg_of(ICONS, "left"), 16).tobytes()
    monkeypatch.setattr(render, "rasterise", lambda *_: pytest.fail("rendered again"))
    assert render.RenderCache(tmp_path, 16).get("set-1", "left", "") == first


def test_broken_svg_is_rejected(tmp_path) -> None:
    with pytest.raises(EmojiDataError, match="set-1/bad"):
        render.RenderCache(tmp_path, 16).get("set-1", "bad", "<svg")
    assert not list(tmp_path.rglob("*.webp"))


def test_atomic_write_leaves_nothing_behind(tmp_path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), atomic_write(path) as stream:
        stream.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_same_bytes_leave_the_file_alone(tmp_path) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"same")
    before = path.stat()
    write_bytes(path, b"same")
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_bytes(path, b"else")
    assert path.read_bytes() == b"else"
    assert list(tmp_path.iterdir()) == [path]


def test_without_npm_the_error_names_the_remedy(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EmojiDataError, match=r"npm not found.*--packages"):
        packages.fetch(packages.NAMES, tmp_path / "cache")


def fake_npm(folder: Path, script: str) -> None:
    program = folder / "npm"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_fetch_unpacks_once(tmp_path, monkeypatch) -> None:
    content = tmp_path / "package.json"
    content.write_text("{}")
    with tarfile.open(tmp_path / "made.tgz", "w:gz") as archive:
        archive.add(content, "package/package.json")
    fake_npm(tmp_path, f'echo "$@" >> {tmp_path}/calls; cp {tmp_path}/made.tgz ./x.tgz')
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for _ in range(2):
        found = packages.fetch(packages.NAMES, tmp_path / "cache")
        assert (found / "package.json").is_file()
    calls = (tmp_path / "calls").read_text().splitlines()
    assert calls == [f"pack {packages.NAMES.spec} --silent"]


def test_failing_npm_is_reported(tmp_path, monkeypatch) -> None:
    fake_npm(tmp_path, "echo no network >&2; exit 3")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    with pytest.raises(EmojiDataError, match=r"failed \(3\): no network"):
        packages.fetch(packages.NAMES, tmp_path / "cache")
    assert not (tmp_path / "cache" / packages.NAMES.folder).exists()


def test_locate_rejects_other_versions(tmp_path) -> None:
    with pytest.raises(EmojiDataError, match="npm pack emojibase-data"):
        packages.locate(packages.NAMES, tmp_path)
    folder = tmp_path / packages.NAMES.name
    folder.mkdir()
    (folder / "package.json").write_text('{"version": "1.0.0"}')
    with pytest.raises(EmojiDataError, match=r"version 1\.0\.0, expected"):
        packages.locate(packages.NAMES, tmp_path)
    (folder / "package.json").write_text(f'{{"version": "{packages.NAMES.version}"}}')
    assert packages.locate(packages.NAMES, tmp_path) == folder
