"""What the user has to mend is told in a line; everything else keeps its traceback."""

import subprocess
import sys

import pytest

from ofa_exit.data.tsv import TsvError
from ofa_exit.plugin.errors import UsageError, usage_errors

START = """
import sys
import torch.distributed as dist
from torch.utils.data import DataLoader
import ofa_exit.plugin
from ofa_exit.data.tsv import TsvError
from ofa_exit.plugin.errors import UsageError
sys.argv[0] = "/somewhere/fairseq-train"
print("before")

class Bad:
    def __len__(self):
        return 1
    def __getitem__(self, index):
        raise TsvError("a.tsv", 3, "image", "it is none", "Give one")

"""
GROUP = 'dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)\n'


def end(code):
    return subprocess.run([sys.executable, "-c", START + code], capture_output=True, text=True)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise UsageError('give --data')", "give --data"),
        (GROUP + "raise UsageError('give --data')", "give --data"),
        ("Bad()[0]", "a.tsv, line 3, field 'image': it is none. Give one"),
        (
            "next(iter(DataLoader(Bad(), num_workers=1)))",
            "a.tsv, line 3, field 'image': it is none. Give one",
        ),
    ],
    ids=["alone", "among processes", "a row", "a row in a worker"],
)
def test_users_errors_are_a_line(code, message):
    done = end(code)
    assert done.returncode == 2
    assert done.stdout == "before\n"
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1] == f"fairseq-train: error: {message}"


@pytest.mark.parametrize("code", ["raise ValueError('a slip')", "1 / 0"])
@pytest.mark.parametrize("group", ["", GROUP])
def test_other_errors_keep_their_traceback(code, group):
    done = end(group + code)
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
