"""Damaged releases and manifests: a message and status 2, or a prepared file, never a traceback."""

import json
import os
import random

import pytest
from helpers import prepare_samples as samples
from helpers.prepare_samples import manifest, prepare, problems, rows

RELEASES = {
    "coco": samples.coco,
    "nocaps": samples.nocaps,
    "snli_ve": samples.snli_ve,
    "vqa": samples.vqa,
    "okvqa": samples.okvqa,
    "gqa": samples.gqa,
    "vizwiz": samples.vizwiz,
    "visdial": samples.visdial,
    "rsicd": samples.rsicd,
    "vqa_rad": samples.vqa_rad,
}
DEEP = "[" * 3000 + "]" * 3000
BAD = ["{}", "[]", "null", "true", '"\\ud800"', "1" * 5000, "1e999", '"a\\tb"', DEEP]


def paths_in(value, path=()):
    """Every place in a JSON value."""
    yield path
    parts = enumerate(value) if isinstance(value, list) else ()
    for key, part in value.items() if isinstance(value, dict) else parts:
        yield from paths_in(part, (*path, key))


def spoiled(value, path, marker):
    """The value with a marker at a place."""
    if not path:
        return marker
    copy = value.copy()
    copy[path[0]] = spoiled(value[path[0]], path[1:], marker)
    return copy


@pytest.mark.parametrize("name", RELEASES)
def test_spoiled_annotations(name, tmp_path):
    root, chosen = tmp_path / "root", random.Random(name)
    RELEASES[name](root)
    sources = [path for path in sorted(root.rglob("*.json*")) if path.is_file()]
    for number in range(27):
        source, bad = chosen.choice(sources), BAD[number % len(BAD)]
        text = source.read_text()
        if source.suffix == ".jsonl":
            lines = text.splitlines()
            place = chosen.randrange(len(lines))
            value = json.loads(lines[place])
            path = chosen.choice(list(paths_in(value)))
            lines[place] = json.dumps(spoiled(value, path, "MARK")).replace('"MARK"', bad)
            source.write_text("\n".join(lines))
        else:
            value = json.loads(text)
            path = chosen.choice(list(paths_in(value)))
            source.write_text(json.dumps(spoiled(value, path, "MARK")).replace('"MARK"', bad))
        try:
            status = prepare(name, root, tmp_path / f"out{number}", "--skip-missing")
        except Exception as error:
            raise AssertionError(f"{source.name} {path} {bad[:20]}: {error!r}") from error
        assert status in (0, 2), (source.name, path, bad[:20])
        for made in (tmp_path / f"out{number}").glob("*.tsv"):
            assert len({len(row) for row in rows(made)}) == 1
        source.write_text(text)


def test_a_tab_in_an_image_name_is_a_problem(tmp_path):
    root = tmp_path / "root"
    samples.snli_ve(root)
    source = root / "snli_ve_dev.jsonl"
    lines = source.read_text().splitlines()
    entry = json.loads(lines[0])
    key = "Flikr30kID" if "Flikr30kID" in entry else "Flickr30K_ID"
    source.write_text("\n".join([json.dumps({**entry, key: "a\tb"}), *lines[1:]]))
    command = ("snli_ve", root, tmp_path / "out", "--splits", "valid")
    assert prepare(*command) == 2
    assert "holds a tab or a line break" in problems(tmp_path / "out" / "valid.tsv")[0]
    assert prepare(*command, "--skip-missing") in (0, 2)


def test_dangling_links_are_skipped(tmp_path):
    root = tmp_path / "root"
    samples.coco(root)
    image = root / "train2014" / "COCO_train2014_000000000009.jpg"
    image.unlink()
    image.symlink_to("gone.jpg")
    command = ("coco", root, tmp_path / "out", "--splits", "train")
    assert prepare(*command) == 2
    assert prepare(*command, "--skip-missing") == 0
    assert "COCO_train2014_000000000009.jpg" in problems(tmp_path / "out" / "train.tsv")[0]
    assert len(rows(tmp_path / "out" / "train.tsv")) == 1


@pytest.mark.parametrize("keeps_time", [False, True])
def test_a_file_that_was_changed_is_written_again(tmp_path, capsys, keeps_time):
    root, out = tmp_path / "root", tmp_path / "out" / "train.tsv"
    samples.coco(root)
    command = ("coco", root, tmp_path / "out", "--splits", "train")
    assert prepare(*command) == 0
    good, status = out.read_bytes(), out.stat()
    out.write_bytes(good.replace(b"dog", b"cow"))
    if keeps_time:  # a manifest of an earlier version has no time
        content = manifest(out)
        del content["output"]["mtime_ns"]
        samples.write_json(out.with_name("train.tsv.manifest.json"), content)
        os.utime(out, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert prepare(*command) == 0
    assert "was changed, or is not from" in capsys.readouterr().err
    assert out.read_bytes() == good
    os.utime(out)  # copied: another time, the same content
    assert prepare(*command) == 0
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize("key", ["output", "inputs", "skipped", "folders"])
@pytest.mark.parametrize("bad", [None, [], {}, "x", 1.5])
def test_a_manifest_of_wrong_types_is_not_believed(tmp_path, key, bad):
    root, out = tmp_path / "root", tmp_path / "out" / "train.tsv"
    samples.coco(root)
    command = ("coco", root, tmp_path / "out", "--splits", "train")
    assert prepare(*command) == 0
    for place in ((key,), ("inputs", "sources"), ("output", "rows")):
        content = spoiled(manifest(out), place, bad)
        samples.write_json(out.with_name("train.tsv.manifest.json"), content)
        assert prepare(*command) == 0
        assert manifest(out)["output"]["rows"] == 3
