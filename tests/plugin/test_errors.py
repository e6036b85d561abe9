"""User errors end a command with one line and exit status 2; other errors keep their traceback."""

import pickle
import subprocess
import sys

import pytest
from torch._utils import ExceptionWrapper

from ofa_exit.data.tsv import TsvError
from ofa_exit.plugin.errors import UsageError, usage_errors

# torch replaces sys.excepthook in a process of several.
START = """
import sys
import torch.distributed as dist
from ofa_exit.plugin.errors import UsageError
sys.argv[0] = "/somewhere/fairseq-train"
print("before")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
"""


def run(code):
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)


def test_usage_errors_are_one_line_in_distributed_training():
    """For a single process see test_caption_commands."""
    done = run("raise UsageError('give --data')")
    assert done.returncode == 2
    assert done.stdout == "before\n"
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "fairseq-train: error: give --data"


def test_other_errors_keep_their_traceback_in_distributed_training():
    done = run("raise ValueError('a bug')")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "fairseq-train: error" not in done.stderr


def test_importing_the_plugin_leaves_the_excepthook_alone():
    code = "hook = sys.excepthook; import ofa_exit.plugin; assert sys.excepthook is hook"
    assert run(code).returncode == 0


def test_an_error_from_a_data_loading_worker_prints_its_own_line_only(capsys, monkeypatch):
    """torch pickles a worker's error as text that begins with the worker's traceback."""
    monkeypatch.setattr("sys.argv", ["/bin/fairseq-generate"])
    try:
        raise UsageError("test.tsv, line 7: no image")
    except UsageError:
        wrapped = pickle.loads(pickle.dumps(ExceptionWrapper(where="in DataLoader worker 0")))
    with pytest.raises(UsageError, match="Traceback") as caught:
        wrapped.reraise()
    assert caught.value.code == caught.value.code == 2  # printed once, however often it is read
    assert capsys.readouterr().err == "fairseq-generate: error: test.tsv, line 7: no image\n"


@pytest.mark.parametrize(
    "error", [ValueError("text"), FileNotFoundError("text"), TsvError("text", 1, message="bad")]
)
def test_errors_of_options_and_files_become_usage_errors(error):
    with pytest.raises(UsageError, match="text") as caught, usage_errors():
        raise error
    assert caught.value.__cause__ is error


def test_other_errors_are_not_converted():
    with pytest.raises(UsageError) as caught, usage_errors():
        raise UsageError("text")
    assert caught.value.__cause__ is None
    with pytest.raises(TypeError), usage_errors():
        raise TypeError("a bug")
