"""What the user has to mend is told in a line; everything else keeps its traceback."""

import subprocess
import sys

import pytest

from ofa_exit.data.tsv import TsvError
from ofa_exit.plugin.errors import UsageError, usage_errors

# As torch runs a process among others: with a hook of its own around ours.
START = """
import sys
import torch.distributed as dist
from ofa_exit.plugin.errors import UsageError
sys.argv[0] = "/somewhere/fairseq-train"
print("before")
dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
"""


def end(code):
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)


def test_users_errors_are_a_line_among_processes():
    """For a process alone see test_caption_commands."""
    done = end("raise UsageError('give --data')")
    assert done.returncode == 2
    assert done.stdout == "before\n"
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == "fairseq-train: error: give --data"


def test_other_errors_keep_their_traceback_among_processes():
    done = end("raise ValueError('a slip')")
    assert done.returncode == 1
    assert "Traceback (most recent call last)" in done.stderr
    assert "fairseq-train: error" not in done.stderr


def test_what_is_converted():
    for error in (ValueError("text"), FileNotFoundError("text")):
        with pytest.raises(UsageError, match="text") as caught, usage_errors():
            raise error
        assert caught.value.__cause__ is error
    for kind in (UsageError, TsvError):  # they are told as they are
        with pytest.raises(kind) as caught, usage_errors():
            raise kind("text")
        assert caught.value.__cause__ is None
    with pytest.raises(TypeError), usage_errors():
        raise TypeError("a slip")
