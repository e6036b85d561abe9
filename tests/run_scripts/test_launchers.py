"""Several training processes, started by torchrun and by Slurm."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from fairseq import options
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from helpers import task_files as files
from helpers.paths import ROOT
from helpers.script_runs import RECORD

from ofa_exit.data.row_index import index_path

TRAIN = f'source {ROOT}/run_scripts/common.sh; train "$@"'
OPTIONS = [
    *["--task", "mue_caption", "--criterion", "mue_loss", *files.NANO, *files.SMALL],
    *["--optimizer", "sgd", "--lr", "0.05", "--split-modalities", "--dropout", "0"],
    *["--batch-size", "2", "--num-workers", "0", "--log-interval", "1", "--seed", "1"],
    *["--log-format", "json", "--no-epoch-checkpoints", "--disable-validation"],
]
SCONTROL = "#!/bin/sh\nprintf 'HOST\\nother\\n'\n"


def environment(**more: str) -> dict[str, str]:
    launched = re.compile("SLURM_|RANK$|WORLD_SIZE$|MASTER_|PORT$")
    kept = {name: value for name, value in os.environ.items() if not launched.match(name)}
    bin_folder = os.path.dirname(sys.executable)
    return {**kept, "BIN": bin_folder, "DEVICE": "cpu", "OMP_NUM_THREADS": "1", **more}


def scontrol(folder: Path, host: str) -> str:
    """Return a PATH whose first folder has a stand-in for Slurm's scontrol."""
    folder.mkdir()
    (folder / "scontrol").write_text(SCONTROL.replace("HOST", host))
    (folder / "scontrol").chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


def free_port() -> str:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return str(found.getsockname()[1])


def finished(running: list[subprocess.Popen]) -> str:
    """Return what the processes printed; fail if one of them did."""
    printed = [process.communicate(timeout=3600)[0] for process in running]
    assert all(process.returncode == 0 for process in running), printed[0][-3000:]
    return "".join(printed)


def start(command: list[str], **more: str) -> subprocess.Popen:
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(**more), cwd="/", **pipes)


def one_process(arguments: list[str], tmp_path: Path) -> str:
    command = ["bash", "-c", TRAIN, "train", *arguments, "--update-freq", "2"]
    return finished([start(command)])


def torchrun(arguments: list[str], tmp_path: Path) -> str:
    launcher = [f"{os.path.dirname(sys.executable)}/torchrun", "--standalone"]
    launcher += ["--nproc_per_node", "2", "--no-python"]
    return finished([start([*launcher, "bash", "-c", TRAIN, "train", *arguments])])


def slurm(arguments: list[str], tmp_path: Path) -> str:
    """Start two tasks of a job as srun would; fairseq uses LOCALID as the GPU's number."""
    path, port = scontrol(tmp_path / "slurm", "127.0.0.1"), free_port()
    job = {"SLURM_JOB_NODELIST": "node", "SLURM_NNODES": "1", "SLURM_NTASKS": "2"}
    job |= {"SLURM_LOCALID": "0", "PATH": path, "PORT": port}
    command = ["bash", "-c", TRAIN, "train", *arguments]
    return finished([start(command, SLURM_PROCID=rank, **job) for rank in "01"])


def losses(printed: str) -> dict[int, float]:
    """Return the loss by update, of the process that logs."""
    lines = re.findall(r"train_inner \| (\{.*\})", printed)
    values = {int(one["num_updates"]): float(one["loss"]) for one in map(json.loads, lines)}
    assert len(values) == len(lines)  # only one process logs
    return values


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Return the trained weights; batch norm's statistics differ between processes."""
    state = torch.load(folder / "checkpoint_last.pt", weights_only=False)["model"]
    return {
        name: value
        for name, value in state.items()
        if value.is_floating_point() and not name.endswith(("running_mean", "running_var"))
    }


@pytest.mark.slow
def test_two_processes_learn_as_one(tmp_path):
    """Batches are dealt in turn, so two processes equal one process with two batches per update.

    Three updates by torchrun, then two more by Slurm from its checkpoint. SGD, because the gradient
    of a key's bias is a rounding error, which Adam would turn into full steps.
    """
    data = str(files.caption_folder(tmp_path / "data"))

    def arguments(folder: Path, updates: int) -> list[str]:
        return [data, *OPTIONS, "--save-dir", str(folder), "--max-update", str(updates)]

    alone, together = tmp_path / "alone", tmp_path / "together"
    expected = losses(one_process(arguments(alone, 5), tmp_path))
    assert sorted(expected) == [1, 2, 3, 4, 5]
    index_path(Path(data) / "train.tsv").unlink()  # both start without an index of the data
    found = losses(torchrun(arguments(together, 3), tmp_path))
    assert sorted(found) == [1, 2, 3]
    halfway = weights(together)
    found |= losses(slurm(arguments(together, 5), tmp_path))
    assert found == pytest.approx(expected, rel=1e-3)
    ours, theirs = weights(together), weights(alone)
    assert ours.keys() == theirs.keys()
    moved = sum(float((theirs[name] - halfway[name]).norm()) for name in theirs)
    assert moved > 1e-2
    for name, value in theirs.items():
        change = float((value - halfway[name]).norm())
        assert float((ours[name] - value).norm()) < 1e-2 * change + 1e-6, name


@pytest.mark.parametrize("tasks", [1, 8])
def test_slurm_is_understood(tasks, tmp_path, monkeypatch):
    """On the second of two machines with eight GPUs: one task per machine, one task per GPU."""
    stand_ins = tmp_path / "bin"
    stand_ins.mkdir()
    called = tmp_path / "called"
    (stand_ins / "fairseq-train").write_text(RECORD.replace("CALLS", str(called)))
    (stand_ins / "python").write_text("#!/bin/sh\necho 8\n")  # only asked for the number of GPUs
    for name in ("fairseq-train", "python"):
        (stand_ins / name).chmod(0o755)
    job = {"SLURM_STEP_NODELIST": "gpu[1-2]", "SLURM_NNODES": "2", "SLURM_NODEID": "1"}
    job |= {"SLURM_NTASKS": str(2 * tasks), "SLURM_NTASKS_PER_NODE": str(tasks)}
    job |= {"SLURM_PROCID": "11" if tasks == 8 else "1", "SLURM_LOCALID": "3"}
    job |= {"PATH": scontrol(tmp_path / "slurm", "gpu1")}
    command = ["bash", "-c", TRAIN, "train", "data", *OPTIONS]
    finished([start(command, **job | {"BIN": str(stand_ins), "DEVICE": "cuda", "PORT": "12345"})])
    arguments = called.read_text().split()
    monkeypatch.setattr("sys.argv", ["fairseq-train", *arguments])
    parsed = options.parse_args_and_arch(options.get_training_parser(), arguments)
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    config = convert_namespace_to_omegaconf(parsed).distributed_training
    assert config.ddp_backend == "legacy_ddp"
    distributed_utils.infer_init_method(config)
    assert config.distributed_init_method == "tcp://gpu1:12345"
    assert config.distributed_world_size == 16
    if tasks == 1:  # fairseq starts the other seven itself
        assert (config.distributed_rank, config.distributed_num_procs) == (8, 8)
        assert not config.distributed_no_spawn
    else:
        assert (config.distributed_rank, config.device_id) == (11, 3)
        assert config.distributed_no_spawn
