"""Result files made from the output of fairseq-generate, and the two commands."""

import json

import pytest
from helpers.task_files import (
    caption_folder,
    caption_row,
    generate_arguments,
    run,
    train,
    write_tsv,
)

from ofa_exit.cli import score, submit
from ofa_exit.evaluation.metrics import submission

GENERATED = """2026-01-01 | INFO | fairseq_cli.generate | D-7 is no line of results
S-1\twhat?
T-1\tno && yes
H-1\t-0.5\tno
D-1\t-0.5\tno
P-1\t-0.5
D-1\t-0.9\tyes
D-0\t-0.1\ta  dog \N{EM DASH} "it"
D-2\t-0.1\t
Generate test with beam=2: accuracy = 1
"""


@pytest.fixture
def generated(tmp_path):
    (tmp_path / "generate-test.txt").write_text(GENERATED, encoding="utf-8")
    return tmp_path / "generate-test.txt"


def tsv(folder, names):
    path = folder / "test.tsv"
    path.write_bytes(b"".join(f"{name}\ti{name}\tx\r\n".encode() for name in names) + b"\r\n")
    return path


def made(benchmark, generated, names, column=0):
    paths = [generated], tsv(generated.parent, names)
    return submission.make_results(benchmark, *paths, column)


@pytest.mark.parametrize(
    ("benchmark", "keys", "number"),
    [
        ("vqa", ("question_id", "answer"), int),
        ("okvqa", ("question_id", "answer"), int),
        ("vizwiz", ("image", "answer"), str),
        ("gqa", ("questionId", "prediction"), str),
        ("coco", ("image_id", "caption"), int),
        ("nocaps", ("image_id", "caption"), int),
    ],
)
def test_formats(generated, benchmark, keys, number):
    texts = ['a  dog — "it"', "no", ""]  # the best hypothesis, as it is, in the TSV's order
    expected = [
        dict(zip(keys, (number(name), text))) for name, text in zip(("07", "5", "6"), texts)
    ]
    assert made(benchmark, generated, ("07", "5", "6")) == expected


def test_the_column_of_the_identifiers(generated):
    assert made("vizwiz", generated, "abc", column=1)[0]["image"] == "ia"
    with pytest.raises(ValueError, match=r"line 1: no column 3 \(from 0\) among 3"):
        made("vizwiz", generated, "abc", column=3)
    with pytest.raises(ValueError, match=r"test.tsv, line 1: identifier 'a'.*--id-column"):
        made("vqa", generated, "abc")
    with pytest.raises(ValueError, match=r"line 2: identifier x was in line 1"):
        made("vizwiz", generated, "abc", column=2)


def test_visdial_ranks(generated):
    generated.write_text("D-0\t-1\t2 0 1\nD-1\t-1\t0 1 2\n")
    assert made("visdial", generated, ("12_1", "12_2")) == [
        {"image_id": 12, "round_id": 1, "ranks": [2, 3, 1]},
        {"image_id": 12, "round_id": 2, "ranks": [1, 2, 3]},
    ]
    with pytest.raises(ValueError, match="'12' is not IMAGE_ROUND"):
        made("visdial", generated, ("12", "13"))
    for text in ("0 1 1", "1 2 3", "yes", "", "0 1 -2"):
        generated.write_text(f"D-0\t-1\t{text}\n")
        with pytest.raises(ValueError, match=r"line 1: the generated text should rank"):
            made("visdial", generated, ("12_1",))


def test_files_of_several_processes(generated, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text("D-3\t-1\tcat\n")
    path = tsv(tmp_path, "1234")
    entries = submission.make_results("vqa", [generated, other], path)
    assert [entry["answer"] for entry in entries][1:] == ["no", "", "cat"]
    other.write_text("D-0\t-1\tcat\n")
    with pytest.raises(ValueError, match=r"other.txt, line 1: row 0 was generated before"):
        submission.make_results("vqa", [generated, other], path)


def test_files_that_do_not_fit_raise(generated, tmp_path):
    with pytest.raises(ValueError, match=r"has 2 rows, but row 2"):
        made("vqa", generated, "12")
    with pytest.raises(ValueError, match=r"1 of 4 rows have no hypothesis \(lines 4\)"):
        made("vqa", generated, "1234")
    entries = submission.make_results("vqa", [generated], tsv(tmp_path, "1234"), 0, True)
    assert [entry["question_id"] for entry in entries] == [1, 2, 3]
    generated.write_text("Generate test\n")
    with pytest.raises(ValueError, match="no line D-"):
        made("vqa", generated, "1")
    generated.write_text("D-0 -1 yes\n")
    with pytest.raises(ValueError, match="line 1: not D-ROW"):
        made("vqa", generated, "1")
    (tmp_path / "test.tsv").write_text("1\ta\n\n2\tb\n")
    with pytest.raises(ValueError, match="line 3: there is an empty line above"):
        submission.read_ids(tmp_path / "test.tsv", 0)
    (tmp_path / "test.tsv").write_text("\ta\n")
    with pytest.raises(ValueError, match="line 1: the identifier in column 0 is empty"):
        submission.read_ids(tmp_path / "test.tsv", 0)


def test_commands(generated, tmp_path, capsys):
    path, out = tsv(tmp_path, "123"), tmp_path / "results.json"
    assert submit.main(["vqa", str(generated), str(path), str(out)]) == 0
    assert capsys.readouterr().out == f"{out}: 3 results\n"
    answers = [{"answer": "no"}] * 10
    annotations = [
        {"question_id": number, "answers": answers, "answer_type": "yes/no", "question_type": "is"}
        for number in (1, 2, 3)
    ]
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps({"annotations": annotations}))
    given = ["vqa", "--results", str(out), "--annotations", str(file)]
    saved = tmp_path / "scores.json"
    assert score.main([*given, "--json", str(saved)]) == 0
    assert capsys.readouterr().out.startswith("VQA accuracy = 33.33\n(3 questions)\n")
    assert json.loads(saved.read_text())["breakdowns"]["answer type"]["yes/no"][1] == 3
    file.write_text(json.dumps({"annotations": annotations[:1]}))
    assert score.main(given) == 2
    assert "2 of 3 results are for no question" in capsys.readouterr().err
    assert submit.main(["vqa", str(generated), str(tmp_path / "no.tsv"), str(out)]) == 2
    assert "no.tsv" in capsys.readouterr().err
    assert len(json.loads(out.read_text())) == 3  # untouched by what failed
    assert not list(tmp_path.glob("*.partial"))


@pytest.mark.parametrize("benchmark", score.BENCHMARKS)
def test_each_benchmark_has_help_and_a_writer(benchmark, capsys):
    assert set(score.BENCHMARKS) == set(submission.FORMATS)
    for command in (score, submit):
        with pytest.raises(SystemExit) as stop:
            command.main([benchmark, "--help"])
        assert stop.value.code == 0
        assert "--allow-missing" in capsys.readouterr().out
    assert score.main([benchmark, "--results", "no.json", "--annotations", "no.json"]) == 2
    assert "no.json" in capsys.readouterr().err


def test_from_generation_to_scores(tmp_path, capsys):
    """One generation, scored by fairseq-generate and by the two commands."""
    import fairseq_cli.generate
    from fairseq import options

    data = caption_folder(tmp_path / "data")
    rows = [[str(900 + n), *caption_row(n, 2)[1:]] for n in (3, 0, 2, 1, 4, 5, 6)]
    write_tsv(data / "test.tsv", rows)
    checkpoint = train("mue_caption", data, tmp_path / "run")
    arguments = generate_arguments("mue_caption", data, checkpoint, "--beam", "2")
    more = ["--nbest", "2", "--results-path", str(tmp_path / "out")]
    more += ["--scoring", "coco_caption", "--coco-tokenizer", "plain"]
    parser = options.get_generation_parser()
    scorer = run(parser, fairseq_cli.generate.main, [*arguments, *more])

    generated, out = tmp_path / "out/generate-test.txt", tmp_path / "results.json"
    assert submit.main(["coco", str(generated), str(data / "test.tsv"), str(out)]) == 0
    annotations = {
        "images": [{"id": int(row[0])} for row in rows],
        "annotations": [
            {"image_id": int(row[0]), "caption": text}
            for row in rows
            for text in row[2].split("&&")
        ],
    }
    file = tmp_path / "annotations.json"
    file.write_text(json.dumps(annotations))
    capsys.readouterr()
    given = ["coco", "--results", str(out), "--annotations", str(file)]
    assert score.main([*given, "--coco-tokenizer", "plain"]) == 0
    printed = capsys.readouterr().out.splitlines()
    expected = [f"{name} = {value:.2f}" for name, value in scorer.values().items()]
    assert printed[: len(expected)] == expected
