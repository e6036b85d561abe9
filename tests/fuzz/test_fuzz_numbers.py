"""Numbers of ``fairseq-generate`` that are none, or too small or too large, before weights."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK
from helpers.fuzzing import contained, fuzz
from hypothesis import given
from hypothesis import strategies as st

from ofa_exit.plugin.errors import UsageError

pytestmark = pytest.mark.slow
data, checkpoint = caption_task.data, caption_task.checkpoint  # fixtures
OPTIONS = (
    *("--beam", "--nbest", "--max-len-a", "--max-len-b", "--min-len", "--lenpen", "--unkpen"),
    *("--temperature", "--prefix-size", "--no-repeat-ngram-size", "--sampling-topk"),
    *("--sampling-topp", "--batch-size", "--max-tokens", "--num-workers", "--num-shards"),
    *("--shard-id", "--required-batch-size-multiple", "--patch-image-size", "--num-bins"),
    *("--code-dict-size", "--max-image-pixels", "--max-src-length", "--max-tgt-length"),
    *("--exit-image-tokens", "--exit-lossless", "--seed", "--data-buffer-size"),
)
# Without "--", see test_bad_numbers.
NUMBERS = st.one_of(
    st.sampled_from(("0", "-1", "-0.5", "0.5", "nan", "inf", "-inf", "1e999", "1_0", "٣", "²")),
    st.sampled_from(("", " ", "x", "0x10", "1,2", "[1]", "None", "True", "1" * 5_000, "é")),
    st.integers(-9, 9).map(str),
    st.floats().map(str),
)


class ReachedError(Exception):
    """The options are good: the weights would be read next."""


@fuzz(60)
@given(option=st.sampled_from(OPTIONS), value=NUMBERS)
def test_a_number_is_taken_or_named(tmp_path, data, checkpoint, option, value):
    def reached(*_, **__):
        raise ReachedError

    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
        patch.setattr("fairseq.checkpoint_utils.load_model_ensemble", reached)
        patch.setattr(sys, "argv", ["fairseq-generate"])
        try:
            with contained(tmp_path):
                files.generate(TASK, data, checkpoint, f"{option}={value}")
        except ReachedError:
            return
        except UsageError as error:
            message = str(error)
        except SystemExit as error:  # argparse prints the usage before its error
            assert error.code == 2
            message = err.getvalue().splitlines()[-1]
    assert option in message and "\n" not in message, message[:500]
