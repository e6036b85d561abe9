"""The measurements of `make gpu`, at a tiny size on the CPU."""

import csv
import os
import re
import subprocess
import sys

import pytest
import torch
from helpers.paths import ROOT

from benchmarks import device_use, training

TINY = ["--arch", "ofa_nano", "--image-size", "32", "--vocabulary", "60", "--device", "cpu"]
TINY += ["--dtype", "float32", "--batch-size", "1,2"]


def rows_of(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_host_reads_are_counted():
    tensor = torch.ones(3)
    assert device_use.device_use(lambda: [float(x) for x in tensor], "cpu")["host_reads"] == 3
    assert device_use.device_use(lambda: tensor + 1, "cpu")["host_reads"] == 0


def test_full_depth_reads_no_more_than_the_reference(tmp_path, capsys):
    more = ["--steps", "4", "--only", "reference", "full", "--csv"]
    assert device_use.main([*TINY, *more, str(tmp_path / "use.csv")]) == 0
    reads = {
        (r["variant"], r["batch"]): int(r["host_reads"]) for r in rows_of(tmp_path / "use.csv")
    }
    for batch in ("1", "2"):
        assert reads["full", batch] <= reads["reference", batch]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_training_is_timed(tmp_path, dtype):
    out = tmp_path / "training.csv"
    given = [*TINY[:-4], "--dtype", dtype, "--batch-size", "2", "--steps", "1", "--csv", str(out)]
    assert training.main(given) == 0
    rows = rows_of(out)
    assert [row["loss"] for row in rows] == ["last", "uniform", "autograd", "self_distil"]
    for row in rows:
        assert float(row["samples_per_second"]) > 0 and float(row["loss_per_token"]) > 0
        assert float(row["peak_mib"]) > 0 and row["dtype"] == dtype
    assert float(rows[0]["time_of_last"]) == float(rows[0]["memory_of_last"]) == 1


@pytest.mark.slow
def test_make_gpu_on_the_cpu(tmp_path):
    """From a copy of the checkout that has no .venv."""
    copy = tmp_path / "copy"
    files = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout
    for name in files.splitlines():
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        (copy / name).write_bytes((ROOT / name).read_bytes())
    environment = {**os.environ, "no_proxy": "*", "PIP_NO_INDEX": "1"}
    done = subprocess.run(
        ["make", "gpu", "DEVICE=cpu", f"PYTHON={sys.executable}"],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    out = copy / "results" / "gpu_cpu"
    assert {"device.txt", "tests.txt", "generate.csv", "device_use.csv", "training.csv"} <= {
        path.name for path in out.iterdir()
    }
    summary = (out / "README.md").read_text()
    assert "Failed: nothing" in summary and re.search(r"\d+ passed", summary)
