"""Generation over a part of the vocabulary."""

import pytest
import torch
from helpers import caption_task
from helpers import task_files as files
from helpers.caption_task import TASK

from ofa_exit.plugin.errors import UsageError

data, checkpoint = caption_task.data, caption_task.checkpoint


def generated(data, checkpoint, words=None, **options):
    """Best hypotheses of the test rows, the model that made them and its task."""
    task = files.setup(TASK, data, target_words=words, **options)
    (model,) = files.load(task, checkpoint)
    rows = files.generate_rows(task, [model])
    return task, model, rows


def test_all_words_are_no_difference(data, checkpoint, tmp_path):
    """A list of every word gives tokens and scores of the whole vocabulary, exits included."""
    task, _, whole = generated(data, checkpoint, exit_policy="similarity")
    everything = tmp_path / "words.txt"
    everything.write_text("\n".join(f"{word} 1" for word in task.dictionary.symbols))
    task, _, listed = generated(data, checkpoint, str(everything), exit_policy="similarity")
    assert listed.keys() == whole.keys()
    for name, hypotheses in whole.items():
        for one, other in zip(hypotheses, listed[name], strict=True):
            assert torch.equal(one["tokens"], other["tokens"])
            torch.testing.assert_close(one["score"], other["score"], rtol=1e-5, atol=1e-5)


def test_only_listed_words_are_used(data, checkpoint, tmp_path):
    few = tmp_path / "few.txt"
    task = files.setup(TASK, data)
    symbols = task.dictionary.symbols[4:7]
    few.write_text("\n".join(symbols))
    task, model, rows = generated(data, checkpoint, str(few))
    allowed = {task.dictionary.index(symbol) for symbol in symbols} | {0, 1, 2, 3}
    used = {int(t) for hypotheses in rows.values() for h in hypotheses for t in h["tokens"]}
    assert used <= allowed and len(used) > 1
    assert model.decoder.target_words is None, "training and other tasks score every word"
    assert task.scored_words() == 7
    with torch.no_grad():
        features = torch.randn(2, model.cfg.decoder_embed_dim)
        model.decoder.keep_words(task.words.kept)
        kept = model.decoder.output_layer(features)
        model.decoder.keep_words(None)
        whole = model.decoder.output_layer(features)
    torch.testing.assert_close(kept, whole[:, task.words.kept])


def test_the_task_leaves_out_codes_and_bins(data):
    task = files.setup(TASK, data, target_words="task", code_dict_size=8, num_bins=4)
    left_out = {"<mask>", *(f"<code_{n}>" for n in range(8)), *(f"<bin_{n}>" for n in range(4))}
    kept = {task.dictionary[int(number)] for number in task.words.kept}
    assert not kept & left_out
    assert len(kept) == len(task.dictionary) - len(left_out)


def test_forced_words_must_be_kept(data, tmp_path):
    few = tmp_path / "few.txt"
    task = files.setup(TASK, data)
    few.write_text(task.dictionary.symbols[4])
    task = files.setup(TASK, data, target_words=str(few))
    assert task.words.reduced(torch.tensor([[4, 1]])).tolist() == [[4, 1]]
    with pytest.raises(UsageError, match="which --target-words leaves out"):
        task.words.reduced(torch.tensor([[5]]))


@pytest.mark.parametrize(
    ("text", "message"),
    [("nosuchword\n", r"few.txt:1: 'nosuchword'"), ("\n", "holds no symbol"), (None, "cannot be")],
)
def test_lists_that_make_no_sense_are_refused(data, tmp_path, text, message):
    few = tmp_path / "few.txt"
    if text is not None:
        few.write_text(text)
    with pytest.raises(UsageError, match=message):
        files.setup(TASK, data, target_words=str(few))
