"""CSV files of sweeps with made-up numbers, in the folders that ``ofa-exit compare`` reads."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

FULL = "full depth"


def setting(
    name: str,
    quality: float,
    layers: tuple[float, float, float] = (6, 6, 6),
    depth: tuple[int, int] = (6, 6),
    gflops: float = 10,
    **more: Any,
) -> dict[str, Any]:
    """A line of a sweep."""
    image, text, decoder = layers
    saved = 1 - ((image + text) / 2 / depth[0] + decoder / depth[1]) / 2
    return {
        "run": "sweep",
        "setting": name,
        "CIDEr": quality,
        "BLEU-4": quality / 3,
        "sentences": 9,
        "words": 40,
        "image_layers": image,
        "text_layers": text,
        "decoder_layers": decoder,
        "encoder_layers_full": depth[0],
        "decoder_layers_full": depth[1],
        "expected_time_reduction": saved,
        "flop_reduction": 1 - gflops / 10,
        "parameter_speedup": depth[1] / decoder,
        "gflops_per_sentence": gflops,
        "gflops_full_per_sentence": 10,
        "measured_time_reduction": saved / 2,
        **more,
    }


def write_sweep(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


EARLY = "exit_image_threshold=0.9 exit_text_threshold=0.9 exit_decoder_threshold=2"
IMAGE = "exit_image_threshold=0.9 exit_text_threshold=2 exit_decoder_threshold=2"
TEXT = "exit_image_threshold=2 exit_text_threshold=0.9 exit_decoder_threshold=2"
SHORT = "exit_image_threshold=2 exit_text_threshold=0.9 exit_decoder_threshold=0.9"


def mue_rows(shift: float = 0.0) -> list[dict[str, Any]]:
    """On validation TEXT keeps 96 % of 100, and SHORT keeps 90 %."""
    return [
        setting(FULL, 98 + shift),
        setting(EARLY, 60 + shift, (3, 2, 6), gflops=6),
        setting(IMAGE, 65 + shift, (3.1, 6, 6), gflops=7),
        setting(TEXT, 97 + shift, (6, 2, 6), gflops=9),
        setting(SHORT, 91 + shift, (6, 2, 3), gflops=5),
    ]


def write_methods(folder: Path) -> Path:
    """A baseline, MuE with two seeds, and a smaller model that never exits."""
    plain = [setting(FULL, 100), setting("exit_decoder_threshold=0.9", 90, (6, 6, 4), gflops=8)]
    write_sweep(folder / "plain" / "valid.csv", plain)
    write_sweep(
        folder / "plain" / "test.csv", [{**row, "CIDEr": row["CIDEr"] / 2} for row in plain]
    )
    for seed, shift in (("1", 0.0), ("2", 2.0)):
        write_sweep(folder / f"mue@{seed}" / "valid.csv", mue_rows())
        write_sweep(folder / f"mue@{seed}" / "test.csv", mue_rows(shift - 50))
    for split, quality in (("valid", 70), ("test", 35)):
        full = {"flop_reduction": 0, "gflops_full_per_sentence": 6}
        rows = [setting(FULL, quality, (4, 4, 4), (4, 4), 6, **full)]
        write_sweep(folder / "tiny" / f"{split}.csv", rows)
    (folder / "mue@1" / "trained_parameters.txt").write_text("1500000\n")
    return folder
