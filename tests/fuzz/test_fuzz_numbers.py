"""Numbers of fairseq's commands that are none, or too small or too large, before weights."""

from __future__ import annotations

import contextlib
import io
import sys

import pytest
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK
from helpers.fuzzing import contained

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
TRAINING = (
    *("--seed", "--lr", "--clip-norm", "--update-freq", "--max-update", "--max-epoch"),
    *("--batch-size", "--max-tokens", "--num-workers", "--log-interval", "--save-interval"),
    *("--save-interval-updates", "--keep-last-epochs", "--patience", "--validate-interval"),
    *("--adam-betas", "--adam-eps", "--weight-decay", "--warmup-updates", "--label-smoothing"),
    *("--drop-worst-ratio", "--drop-worst-after", "--dropout", "--attention-dropout"),
    *("--encoder-drop-path-rate", "--resnet-drop-path-rate", "--encoder-layers"),
    *("--decoder-layers", "--encoder-embed-dim", "--encoder-ffn-embed-dim"),
    *("--encoder-attention-heads", "--max-source-positions", "--token-bucket-size"),
    *("--image-bucket-size", "--resnet-width", "--attn-scale-factor", "--stop-time-hours"),
    *("--patch-image-size", "--num-bins", "--num-shards", "--shard-id"),
)
# Without "--", see test_bad_numbers.
VALUES = (*("0", "-1", "0.5", "nan", "inf", "-1e999", "1_0", "٣", "", "x", "1" * 5_000, "9" * 30),)


class ReachedError(Exception):
    """The options are good: the weights would be read next, or the training begin."""


def message_of(tmp_path, call, owner: str) -> str | None:
    """What a call is rejected with; None if it reaches ``owner``."""

    def reached(*_, **__):
        raise ReachedError

    err = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stderr(err):
        patch.setattr(owner, reached)
        patch.setattr(sys, "argv", ["fairseq"])
        try:
            with contained(tmp_path):
                call()
        except ReachedError:
            return None
        except UsageError as error:
            return str(error)
        except SystemExit as error:  # argparse prints the usage before its error
            assert error.code == 2
            return err.getvalue().splitlines()[-1]
    raise AssertionError("neither reached nor rejected")


def check(option: str, value: str, message: str | None) -> None:
    assert message is None or (option in message and "\n" not in message), (value, message)


@pytest.mark.parametrize("option", OPTIONS)
def test_a_number_of_generation_is_taken_or_named(tmp_path, data, checkpoint, option):
    for value in VALUES:
        message = message_of(
            tmp_path,
            lambda value=value: files.generate(TASK, data, checkpoint, f"{option}={value}"),
            "fairseq.checkpoint_utils.load_model_ensemble",
        )
        check(option, value, message)


@pytest.mark.parametrize("option", TRAINING)
def test_a_number_of_training_is_taken_or_named(tmp_path, data, option):
    more = ["--lr-scheduler", "polynomial_decay", "--disable-validation"]
    for value in VALUES:
        message = message_of(
            tmp_path,
            lambda value=value: files.train(TASK, data, tmp_path, *more, f"{option}={value}"),
            "fairseq_cli.train.Trainer",
        )
        check(option, value, message)
