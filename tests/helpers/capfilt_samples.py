"""Output of fairseq-generate as CapFilt reads it."""

from __future__ import annotations

from helpers.task_files import COLOURS, caption_row, image_field, write_tsv


def write_samples(path, rows: dict[int, list[str]], ends: bool = True):
    lines = ["2026-01-01 | INFO | D-9 is not a line of results"]
    for row, samples in rows.items():
        lines += [f"S-{row}\twhat?", f"T-{row}\tx"]
        for text in samples:
            lines += [f"H-{row}\t-0.5\t{text}", f"D-{row}\t-0.5\t{text}", f"P-{row}\t-0.5"]
    lines += ["Generate images with beam=3: CIDEr = 1"] * ends
    path.write_text("\n".join(lines) + "\n")
    return path


def sampled_rows(tmp_path):
    """Write rows 0 to 3 (red, green, blue, black), row 4 with the image of 1, and their samples."""
    rows = [caption_row(number, image=image_field(COLOURS[number % 4])) for number in range(5)]
    rows[4][1] = "i1"
    tsv = write_tsv(tmp_path / "images.tsv", rows)
    first = {
        2: ["a red square", "blue && paint", "a blue square"],
        0: ["a red square", "a square", "red"],
    }
    second = {
        1: ["a green square", "A green square!", ""],
        3: ["", "", "."],
        4: ["green", "a green square", "paint"],
    }
    parts = [write_samples(tmp_path / f"{n}", part) for n, part in enumerate((first, second))]
    return tsv, parts, tmp_path / "out.tsv"


def captions(path) -> list[list[str]]:
    return [line.split("\t")[:3] for line in path.read_text().splitlines()]
