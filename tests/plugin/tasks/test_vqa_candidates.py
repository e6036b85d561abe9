"""Candidates of OFA's recipes: --ans2label-file, and beam search among them."""

import pickle

import pytest
import torch
from fairseq.logging import metrics
from helpers import task_files as files
from helpers.vqa_samples import WORDS, row

TASK = "mue_vqa"
ANSWERS = [*files.COLOURS, "dark red", "dark green", "dark", "2", "two", "dark red square"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = files.write_dictionary(tmp_path_factory.mktemp("vqa"), WORDS)
    labels = {answer: number for number, answer in enumerate(ANSWERS)}
    (folder / "trainval_ans2label.pkl").write_bytes(pickle.dumps(labels))
    (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in ANSWERS))
    files.write_tsv(folder / "train.tsv", [row(n, "train") for n in range(12)])
    for split in ("valid", "test"):
        files.write_tsv(folder / f"{split}.tsv", [row(n, "weighted") for n in range(9)])
    return folder


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    """Trained by the official script's options."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["test"])
        return files.train(
            *(TASK, f"{data}/train.tsv,{data}/valid.tsv", tmp_path_factory.mktemp("checkpoint")),
            *("--selected-cols", "0,5,2,3,4", "--prompt-type", "prev_output", "--eval-acc"),
            *("--ans2label-file", f"{data}/trainval_ans2label.pkl"),
            *("--val-inference-type", "beamsearch", "--best-checkpoint-metric", "vqa_score"),
            "--maximize-best-checkpoint-metric",
            updates=6,
        )


@pytest.fixture(scope="module")
def models(data, checkpoint):
    return files.load(files.setup(TASK, data), checkpoint)


def task_of(data, **options):
    return files.setup(TASK, data, ans2label_file=f"{data}/trainval_ans2label.pkl", **options)


def test_the_pickle_is_the_list(data, models):
    listed = files.setup(TASK, data, answers=f"{data}/answers.txt")
    for task in (task_of(data), files.setup(TASK, data, answers=f"{data}/trainval_ans2label.pkl")):
        assert task.trie.answers == listed.trie.answers
    answers = files.generate_rows(task_of(data), models, nbest=len(ANSWERS))
    assert sorted(answer["words"] for answer in answers[0]) == sorted(ANSWERS)


@pytest.mark.parametrize("prompt", ["none", "prev_output"])
@pytest.mark.parametrize("batch_size", [1, 9])
def test_a_beam_of_all_candidates_scores_them_as_one_by_one(data, models, prompt, batch_size):
    every = files.generate_rows(task_of(data, prompt_type=prompt), models, nbest=len(ANSWERS))
    task = task_of(data, prompt_type=prompt, beam_search_vqa_eval=True)
    options = {"beam": len(ANSWERS), "nbest": len(ANSWERS), "unnormalized": True}
    found = files.generate_rows(task, models, batch_size=batch_size, max_len_b=3, **options)
    for number, answers in every.items():
        scores = {answer["words"]: answer["score"] for answer in answers}
        assert {answer["words"] for answer in found[number]} == set(ANSWERS)
        assert len(found[number]) == len(ANSWERS)
        for answer in found[number]:
            expected = scores[answer["words"]]
            torch.testing.assert_close(answer["score"], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("prompt", ["none", "prev_output"])
@pytest.mark.parametrize("beam", [1, 2, 5, 200])
def test_a_beam_finds_candidates_only_and_never_dies(data, models, prompt, beam):
    task = task_of(data, prompt_type=prompt, beam_search_vqa_eval=True)
    found = files.generate_rows(task, models, beam=beam, nbest=beam, unnormalized=True)
    for answers in found.values():
        texts = [answer["words"] for answer in answers]
        assert len(texts) == len(set(texts)) == min(beam, len(ANSWERS))
        assert set(texts) <= set(ANSWERS)
        assert all(answer["score"] > -torch.inf for answer in answers)


def test_a_beam_of_one_equals_a_greedy_walk_through_the_candidates(data, models):
    task = task_of(data, beam_search_vqa_eval=True)
    found = files.generate_rows(task, models, beam=1, unnormalized=True)
    task.load_dataset("test")
    sample = task.dataset("test").collater([task.dataset("test")[3]])
    net_input = {k: v for k, v in sample["net_input"].items() if k != "prev_output_tokens"}
    answer: list[int] = []
    while not answer or answer[-1] != task.dictionary.eos():
        prev = torch.tensor([[task.dictionary.bos(), *answer]])
        with torch.no_grad():
            logits = models[0](**net_input, prev_output_tokens=prev)[0][0, -1]
        allowed = task.trie.allowed_next(answer)
        answer.append(max(allowed, key=lambda token: float(logits[token])))
    assert found[3][0]["tokens"].tolist() == answer


def test_exits_are_traced_and_do_not_depend_on_the_batch(data, models, tmp_path):
    traces = []
    for size in (1, 4):
        task = task_of(
            data, prompt_type="prev_output", beam_search_vqa_eval=True,
            exit_policy="similarity", exit_decoder_threshold=0.9, exit_trace=str(tmp_path / "t"),
        )  # fmt: skip
        files.generate_rows(task, models, batch_size=size, beam=3, unnormalized=True)
        assert task.exit_reports[0].summary()["sentences"] == 9
        traces.append((tmp_path / "t").read_text())
    assert traces[0] == traces[1]


def test_the_official_evaluation_runs(data, checkpoint):
    """evaluate_vqa_beam.sh, with its spelling of options."""
    lines = files.generate(
        *(TASK, data, checkpoint, "--prompt-type", "prev_output", "--selected-cols", "0,5,2,3,4"),
        *("--ans2label-file", f"{data}/trainval_ans2label.pkl", "--beam-search-vqa-eval"),
        *("--beam", "5", "--unnormalized", "--temperature", "1.0", "--scoring", "vqa"),
    )
    assert all(lines["D"][n][0][1] in ANSWERS for n in range(9))
    assert "OFA's score of 9 questions" in lines["result"]


def test_validation_searches_like_the_evaluation(data, checkpoint, models):
    task = task_of(data, prompt_type="prev_output", beam_search_vqa_eval=True)
    found = files.generate_rows(task, models, beam=5, unnormalized=True)
    total = 0.0
    for number, answers in found.items():
        parts = (part.split("|!+") for part in row(number, "weighted")[3].split("&&"))
        total += {t.lower(): float(c) for c, t in parts}.get(answers[0]["words"], 0)
    metrics.reset()
    with metrics.aggregate() as seen:
        files.validate(data, checkpoint, "--task", TASK, "--batch-size", "2")
    assert seen.get_smoothed_values()["vqa_score"] == pytest.approx(total / 9, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_len": 2}, "--min-len is not supported.*closed set"),
        ({"sampling": True}, "--sampling is not supported.*closed set"),
        ({"max_len_b": 2}, "--max-len-b 2: the longest candidate has 3 tokens"),
        ({"unnormalized": False}, "--prompt-type prev_output.*--unnormalized"),
    ],
)
def test_options_that_lose_candidates_are_rejected(data, models, options, message):
    task = task_of(data, prompt_type="prev_output", beam_search_vqa_eval=True)
    with pytest.raises(ValueError, match=message):
        files.generate_rows(task, models, **{"unnormalized": True, **options})


def test_several_checkpoints_are_scored_one_by_one(data, models):
    task = task_of(data, beam_search_vqa_eval=True)
    with pytest.raises(ValueError, match="takes one checkpoint, and there are 2"):
        files.generate_rows(task, models * 2, unnormalized=True)


def test_a_search_without_candidates_is_that_of_any_words(data, caplog):
    task = files.setup(TASK, data, beam_search_vqa_eval=True)
    assert task.trie is None and "without --answers: any words are searched" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"answers": "a.txt", "ans2label_file": "b.pkl"}, "give one of them"),
        ({"val_inference_type": "greedy"}, "--val-inference-type 'greedy'.*allcand, beamsearch"),
    ],
)
def test_contradictions_are_rejected(data, options, message):
    with pytest.raises(ValueError, match=message):
        files.setup(TASK, data, **options)
