"""Question answering: data, closed and open answers, exits, validation, and the commands."""

import json

import pytest
import torch
from fairseq.logging import metrics
from helpers import task_files as files
from helpers.vqa_samples import WORDS, row

from ofa_exit.data.trie import AnswerTrie
from ofa_exit.data.vqa import read_answers
from ofa_exit.evaluation.metrics.vqa_answers import answer_accuracy
from ofa_exit.plugin.search.candidates import AllCandidateGenerator

TASK = "mue_vqa"
ANSWERS = [*files.COLOURS, "dark red", "dark green", "dark", "2", "two"]
EXITS = {
    "exit_policy": "similarity",
    **{f"exit_{part}_threshold": 0.9 for part in ("image", "text", "decoder")},
}
PROMPTS = ["none", "src", "prev_output"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = files.write_dictionary(tmp_path_factory.mktemp("vqa"), WORDS)
    (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in ANSWERS))
    files.write_tsv(folder / "train.tsv", [row(n, "train") for n in range(12)])
    files.write_tsv(folder / "valid.tsv", [row(n) for n in range(9)])
    files.write_tsv(folder / "test.tsv", [row(n) for n in range(9)])
    files.write_tsv(folder / "hidden.tsv", [row(n, "test") for n in range(3)])
    return folder


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return files.train(
            *(TASK, data, tmp_path_factory.mktemp("checkpoint"), "--eval-acc"),
            *("--answers", f"{data}/answers.txt", "--prompt-type", "prev_output"),
            *("--best-checkpoint-metric", "vqa_acc", "--maximize-best-checkpoint-metric"),
            updates=4,
        )


@pytest.fixture(scope="module")
def models(data, checkpoint):
    return files.load(files.setup(TASK, data), checkpoint)


def vqa_task(data, closed: bool, **options):
    answers = f"{data}/answers.txt" if closed else None
    return files.setup(TASK, data, answers=answers, **options)


# ---------------------------------------------------------------------- data


def example(data, split, number, closed=False, **options):
    task = vqa_task(data, closed, **options)
    task.load_dataset(split)
    return task, task.dataset(split)[number]


def words(task, tokens):
    return [task.dictionary[t] for t in tokens.tolist()]


def test_a_training_row_as_the_model_reads_it(data):
    task, one = example(data, "train", 1)
    assert words(task, one.source) == ["<s>", "is", "it", "dark", "?", "</s>"]
    assert words(task, one.target) == ["green", "</s>"]
    assert one.conf == 0.6 and one.constraint_mask is None
    task, one = example(data, "train", 1, closed=True, prompt_type="prev_output")
    assert words(task, one.prev_output) == ["<s>", "is", "it", "dark", "?", "green"]
    assert words(task, one.target) == ["<pad>"] * 4 + ["green", "</s>"]
    allowed = one.constraint_mask[4].nonzero().flatten()
    assert set(words(task, allowed)) == {*files.COLOURS, "dark", "2", "two"}


def test_evaluation_keeps_all_answers_and_targets_the_most_frequent(data):
    task, one = example(data, "valid", 2)
    assert one.references == ["blue"] * 5 + ["dark"] * 2 + ["Dark Red", "no", ""]
    assert words(task, one.target) == ["blue", "</s>"] and one.conf == 1
    task, one = example(data, "hidden", 0, closed=True)
    assert one.references == [] and words(task, one.target) == ["</s>"]
    assert one.constraint_mask.all()


def test_an_answer_outside_the_list(data, tmp_path):
    (tmp_path / "few.txt").write_text("dark\ndark red\n")
    task = files.setup(TASK, data, answers=str(tmp_path / "few.txt"))
    task.load_dataset("valid")
    one = task.dataset("valid")[2]
    assert words(task, one.target) == ["dark", "</s>"]  # the most frequent one in the list
    task.load_dataset("train")
    with pytest.raises(ValueError, match=r"(line |:)1\b.*answers.*'red'.* 2 "):
        task.dataset("train")[0]


@pytest.mark.parametrize(
    ("column", "text", "message"),
    [
        (2, "?", "question"),
        (3, "red", "answers"),
        (3, "1.5|!+red", r"answers.*1\.5"),
        (3, "", "answers"),
    ],
)
def test_bad_rows_are_rejected_by_line(tmp_path, column, text, message):
    folder = files.write_dictionary(tmp_path / "data", WORDS)
    bad = row(1, "train")
    bad[column] = text
    files.write_tsv(folder / "train.tsv", [row(0, "train"), bad])
    task = files.setup(TASK, folder)
    task.load_dataset("train")
    with pytest.raises(ValueError, match=rf"(line |:)2\b.*{message}"):
        task.dataset("train")[1]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("red\n\nblue\n", r"(line |:)2\b.*empty"),
        ("red\nmauve\n", r"(line |:)2\b.*'mauve'"),
        ("red\nRed\n", r"(line |:)2\b.*'Red'.*'red'"),
        ("red\n", r"list\.txt.* 1 "),
        (None, r"list\.txt"),
    ],
)
def test_bad_lists_are_rejected_by_line(data, tmp_path, content, message):
    if content is not None:
        (tmp_path / "list.txt").write_text(content)
    with pytest.raises(ValueError, match=message):
        files.setup(TASK, data, answers=str(tmp_path / "list.txt"))


def test_ofas_selection_of_columns_is_accepted(data):
    task = vqa_task(data, False, selected_cols="0,5,2,3,4")
    task.load_dataset("train")
    assert task.dataset("train")[0].uniq_id == "q0"


# ---------------------------------------------------------------------- answers


@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_answer_is_scored_independently_of_the_batch(data, models, prompt):
    task = vqa_task(data, True, prompt_type=prompt)
    alone = files.generate_rows(task, models, batch_size=1, nbest=len(ANSWERS))
    together = files.generate_rows(task, models, batch_size=9, nbest=len(ANSWERS))
    for number, answers in alone.items():
        assert sorted(answer["words"] for answer in answers) == sorted(ANSWERS)
        total = sum(float(answer["score"].exp()) for answer in answers)
        assert total == pytest.approx(1, abs=1e-4)
        scores = {answer["words"]: answer["score"] for answer in together[number]}
        for answer in answers:
            other = scores[answer["words"]]
            torch.testing.assert_close(answer["score"], other, atol=1e-4, rtol=1e-4)
    assert len(files.generate_rows(task, models)[0]) == 1


@pytest.mark.parametrize("prompt", ["none", "prev_output"])
def test_open_answers_equal_a_loop_over_all_words(data, models, prompt):
    """Beam search finds the same scores as scoring all answers of up to two words."""
    task = vqa_task(data, False, prompt_type=prompt)
    options = {"beam": 60, "max_len_b": 1, "unnormalized": True, "nbest": 60}
    found = files.generate_rows(task, models, **options)
    task.load_dataset("test")
    sample = task.dataset("test").collater([task.dataset("test")[0]])
    net_input, length = sample["net_input"], int(sample["prompt_lengths"])
    prompt_tokens = net_input.pop("prev_output_tokens")[:, :length]
    with torch.no_grad():
        first = models[0](**net_input, prev_output_tokens=prompt_tokens)[0][0, -1].log_softmax(0)
    words = [h for h in found[0] if len(h["tokens"]) == 2]
    assert words
    for hypothesis in words:
        prev = torch.cat([prompt_tokens, hypothesis["tokens"][None, :1]], dim=1)
        with torch.no_grad():
            last = models[0](**net_input, prev_output_tokens=prev)[0][0, -1].log_softmax(0)
        score = first[hypothesis["tokens"][0]] + last[task.dictionary.eos()]
        torch.testing.assert_close(hypothesis["score"], score, atol=1e-3, rtol=1e-3)
        assert len(hypothesis["positional_scores"]) == 2


@pytest.mark.parametrize("closed", [True, False])
@pytest.mark.parametrize("prompt", ["none", "prev_output"])
def test_exits_are_traced_and_do_not_depend_on_the_batch(data, models, tmp_path, closed, prompt):
    traces = []
    options = {} if closed else {"beam": 3, "max_len_b": 3, "unnormalized": True}
    for size in (1, 4):
        path = tmp_path / str(size)
        task = vqa_task(data, closed, prompt_type=prompt, exit_trace=str(path), **EXITS)
        found = files.generate_rows(task, models, batch_size=size, **options)
        summary = task.exit_reports[0].summary()
        assert summary["sentences"] == 9 and summary["flop_reduction"] > 0
        traces.append(path.read_text())
    assert traces[0] == traces[1]
    for number, line in enumerate(traces[0].splitlines()):
        (best, *_) = json.loads(line)["hypotheses"]
        assert best["tokens"] == found[number][0]["tokens"].tolist()
        assert len(best["layers"]) == len(best["tokens"])


def test_a_long_list_fills_a_few_rows_of_bounded_length(monkeypatch):
    """VQA v2's list has as many answers. Rows are no longer than for a short list."""
    answers = [[a, b] for a in range(5, 65) for b in range(70, 122)] + [[a] for a in range(5, 14)]
    assert len(answers) == 3129
    monkeypatch.setattr("ofa_exit.data.answer_tree.TOKENS_PER_ROW", 16)
    generator = AllCandidateGenerator([torch.nn.Identity()], AnswerTrie(answers, 2), 1)
    assert generator.tree.tokens.shape == (4, 15)


@pytest.mark.parametrize(
    ("closed", "options", "message"),
    [
        (True, {"beam": 3}, "--beam is not supported.*closed set"),
        (True, {"nbest": 12}, "--nbest 12.* 11 answers"),
        (False, {}, "--prompt-type prev_output.*--answers.*--unnormalized"),
    ],
)
def test_unsupported_options_are_rejected(data, models, closed, options, message):
    task = vqa_task(data, closed, prompt_type="prev_output")
    with pytest.raises(ValueError, match=message):
        files.generate_rows(task, models, **options)


def test_invalid_options_are_rejected(data, models):
    for option, value in (("prompt_type", "bos"), ("vqa_metric", "bleu")):
        with pytest.raises(ValueError, match=value):
            files.setup(TASK, data, **{option: value})
    with pytest.raises(ValueError, match=r"--prompt-type src.*--answers"):
        files.generate_rows(vqa_task(data, False, prompt_type="src"), models)


# ---------------------------------------------------------------------- commands


def test_generate_scores_by_vqa_accuracy(data, checkpoint):
    lines = files.generate(
        *(TASK, data, checkpoint, "--scoring", "vqa_accuracy", "--prompt-type", "prev_output"),
        *("--answers", f"{data}/answers.txt", "--exit-policy", "similarity"),
    )
    total = sum(
        answer_accuracy(lines["D"][n][0][1], lines["T"][n][0][0].split(" && ")) for n in range(9)
    )
    assert f"accuracy = {100 * total / 9:.2f}" in lines["result"]


def test_validation_reports_vqa_accuracy(data, checkpoint, models):
    task = vqa_task(data, True, prompt_type="prev_output")
    found = files.generate_rows(task, models)
    total = sum(
        answer_accuracy(answers[0]["words"], example_references(number))
        for number, answers in found.items()
    )
    metrics.reset()
    with metrics.aggregate() as seen:
        files.validate(data, checkpoint, "--task", TASK, "--batch-size", "2", "--eval-acc")
    assert seen.get_smoothed_values()["vqa_acc"] == pytest.approx(100 * total / 9, abs=0.01)


def example_references(number: int) -> list[str]:
    return [part.partition("|!+")[2] for part in row(number)[3].split("&&")]


def test_a_split_without_answers_is_generated(data, checkpoint):
    lines = files.generate(
        *(TASK, f"{data}/hidden.tsv", checkpoint, "--prompt-type", "prev_output"),
        *("--answers", f"{data}/answers.txt"),
    )
    assert all(lines["D"][n][0][1] in ANSWERS for n in range(3))


def test_the_list_keeps_its_order(data):
    task = files.setup(TASK, data)
    assert list(read_answers(data / "answers.txt", task.encoder)) == ANSWERS
