"""The benchmarks at a tiny size: all variants compute the same, and the numbers add up."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fairseq.sequence_generator import SequenceGenerator
from helpers.paths import FIXTURES

from benchmarks import generate, memory, variants
from benchmarks.parts import METHODS, PARTS, REST, PartTimer, find_methods, timers
from benchmarks.reference import Reference
from benchmarks.report import COLUMNS, Result, rows, table, verdict
from benchmarks.setting import Setting
from benchmarks.timing import interleaved, ratio
from benchmarks.variants import HALF_OF_THE_TOKENS, KINDS, Bench, Models, deviation
from ofa_exit.cli.verify import comparison
from ofa_exit.policies.static import StaticExit

FIXTURE = FIXTURES / "small.json"
TINY = Setting(
    arch="ofa_nano", image_size=32, batch_size=2, beam=3, steps=5, text_length=6, vocabulary=60
)
PATTERNS = [(2, 1, 3), (6, 6, 6)]


@pytest.fixture(scope="module")
def models() -> Models:
    return Models(TINY)


@pytest.fixture(scope="module")
def bench(models: Models) -> Bench:
    return Bench(models, TINY)


@pytest.mark.parametrize("split", [False, True])
@torch.no_grad()
def test_reference_finds_the_hypotheses_of_both_models(split):
    fixture = json.loads(FIXTURE.read_text())
    model = comparison.build(fixture, split)
    reference = Reference.from_model(model)
    net_input = comparison.inputs(fixture, 1)
    del net_input["prev_output_tokens"]
    batch = {"net_input": net_input, "id": torch.arange(fixture["batch"])}
    for setting, official in fixture["generation"].items():
        ours, theirs = (
            SequenceGenerator([m], model.decoder.dictionary, **json.loads(setting)).generate(
                [], batch, bos_token=0
            )
            for m in (model, reference)
        )
        assert deviation(ours, theirs) < generate.TOLERANCE
        if not split:  # the official model has a joint encoder
            for mine, others in zip(theirs, official, strict=True):
                assert [h["tokens"].tolist() for h in mine] == [h["tokens"] for h in others]


def test_reference_shares_the_weight_tensors(models):
    model = variants.build(TINY)
    reference = Reference.from_model(model)
    own = model.encoder.layers[0].fc1.weight
    assert reference.encoder.layers[0].fc1.weight.data_ptr() == own.data_ptr()


def test_reference_copies_the_encoder_output_per_hypothesis(models):
    encoder = models.reference.encoder
    net_input = variants.sample(TINY)["net_input"]
    with torch.no_grad():
        encoded = encoder.forward_torchscript(net_input)
        copied = encoder.reorder_encoder_out(encoded, torch.tensor([0, 0, 0, 1, 1, 1]))
    assert copied.states.size(0) == copied.positions.size(0) == 6


def test_deviation_compares_tokens_and_scores(bench):
    hypotheses, others = bench.reference(), bench.reference()
    assert deviation(hypotheses, others) == 0
    others[1][0]["positional_scores"] = others[1][0]["positional_scores"] + 0.5
    assert deviation(hypotheses, others) == pytest.approx(0.5)
    others[0][2]["tokens"] = others[0][2]["tokens"] + 1
    assert deviation(hypotheses, others) == float("inf")


def test_every_variant_generates_as_many_tokens(bench):
    runs = bench.runs(list(KINDS), PATTERNS)
    assert list(runs) == [
        "reference", "full", "exits 2,1,3", "exits 6,6,6", "tokens", "mixed", "gated", "floor",
    ]  # fmt: skip
    for name, run in runs.items():
        found = run()
        if name == "floor":
            assert found.shape == (6, 1, 60) and found.isfinite().all()
        else:
            assert {len(hyp["tokens"]) for hyps in found for hyp in hyps} == {TINY.steps}
    assert bench.decoder_calls() == [(6, step) for step in range(1, TINY.steps + 1)]


def test_every_variant_runs_with_a_joint_encoder():
    joint = replace(TINY, joint=True)
    bench = Bench(Models(joint), joint)
    runs = bench.runs(list(KINDS), [(2, 2, 3)])
    assert deviation(runs.pop("full")(), runs.pop("reference")()) < generate.TOLERANCE
    for run in runs.values():
        run()
    assert 0 < bench.flop_reduction(StaticExit((2, 2, 3))) < 1
    assert 0 < bench.flop_reduction(None, HALF_OF_THE_TOKENS) < 1


def test_mixed_exits_differ_between_sentences(bench):
    bench.ours(bench.mixed())()
    for step in bench.models.ours.last_trace.steps:
        assert step.layers_used[:, 0].tolist() == [1, 1, 1, 2, 2, 2]
    assert 0 < bench.flop_reduction(bench.mixed()) < bench.flop_reduction(StaticExit((6, 6, 1)))


def test_gates_that_never_exit_change_nothing(bench):
    plain, gated = bench.ours(None)(), bench.gated()()
    assert deviation(plain, gated) < generate.TOLERANCE
    bench.gated()()
    trace = bench.models.ours.last_trace
    assert trace.image_layers.tolist() == [6, 6] and len(trace.steps) == TINY.steps


def test_gates_that_exit_are_rejected_as_a_measure_of_cost(bench, monkeypatch):
    monkeypatch.setattr(variants, "NEVER_EXCEEDED", 0.0)
    with pytest.raises(RuntimeError, match=r"exited.*0\.0"):
        bench.gated()


def test_fewer_layers_save_more_flops(bench):
    full, some, one = (
        bench.flop_reduction(StaticExit(d)) for d in [(6, 6, 6), (6, 2, 3), (1, 1, 1)]
    )
    assert full == 0 < some < one < 1


def test_rounds_rotate_the_order_after_the_warm_up():
    order = []
    runs = {name: (lambda name=name: order.append(name)) for name in "abc"}
    seconds = interleaved(runs, 2, 1, TINY)
    assert "".join(order) == "abcbcacab"
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2, "c": 2}
    assert ratio([2.0, 9.0, 6.0], [1.0, 3.0, 3.0]) == 2.0


class Clock:
    """A clock that advances by one second per call."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("kind", list(METHODS))
def test_parts_sum_to_the_total(bench, kind):
    model = bench.models.ours if kind == "ours" else bench.models.reference
    run = bench.ours(None) if kind == "ours" else bench.reference
    timer = PartTimer(TINY)
    timer._clock = Clock()
    with timers(model, kind, timer), timer.inside(REST):
        run()
    assert sum(timer.seconds.values()) == timer._clock.now - 1  # the first call starts the clock
    assert all(timer.seconds[part] > 0 for part in PARTS)
    assert timer.seconds["text layers"] == timer.seconds["image layers"] >= 6
    paths = [path for group in METHODS[kind].values() for path in group]
    for owner, name in (found for path in paths for found in find_methods(model, path)):
        assert name not in vars(owner), "the timer was not removed"


def test_a_missing_method_raises(models):
    with pytest.raises(AttributeError, match="no_such"):
        list(find_methods(models.ours, "decoder.layers.*.no_such"))


def result(variant: str, seconds: float, batch: int = 8, **others: object) -> Result:
    return Result(variant, replace(TINY, batch_size=batch), [seconds] * 3, **others)


def test_verdict_compares_with_the_targets():
    found = [
        result("reference", 3.3, peak_bytes=100),
        result("full", 1.0, peak_bytes=75),
        result("exits 1,1,1", 0.5, flop_reduction=0.5),
        result("exits 2,2,2", 0.8, flop_reduction=0.4),
        result("gated", 1.01),
        result("floor", 0.7),
        result("reference", 1.9, batch=1),
        result("full", 1.0, batch=1),
    ]
    assert [line[3] for line in verdict(found)] == [
        "met", "MISSED", "met", "MISSED", "met", "MISSED", "MISSED",
    ]  # fmt: skip
    assert "50.0%" in table(found) and "seconds" in table(found)
    assert rows(found)[3]["share_of_flop_reduction"] == pytest.approx(0.5)


def command(*others: object) -> list[str]:
    sizes = "--arch ofa_nano --image-size 32 --beam 2 --steps 3 --text-length 6 --vocabulary 60"
    rounds = "--rounds 2 --warm-up 0 --threads 1 --no-memory"
    return f"{sizes} {rounds}".split() + list(map(str, others))


def test_command_writes_tables_csv_and_figures(tmp_path, capsys):
    out, figure = tmp_path / "out.csv", tmp_path / "bars"
    arguments = ("--batch-size", "1,2", "--profile-rounds", 1, "--depths", "2,1,3", "1,1,1")
    assert generate.main(command(*arguments, "--csv", out, "--plot", figure)) == 0
    with open(out, newline="") as file:
        lines = list(csv.DictReader(file))
    assert tuple(lines[0]) == COLUMNS
    assert [line["variant"] for line in lines] == 2 * [
        "reference", "full", "exits 2,1,3", "exits 1,1,1", "tokens", "mixed", "gated", "floor",
    ]  # fmt: skip
    for line in lines:
        assert line["threads"] == "1" and line["rounds"] == "2" and line["torch"]
        parts = [line[f"seconds_{part}"] for part in PARTS]
        assert all(parts) or (line["variant"] == "floor" and not any(parts))
    printed = capsys.readouterr().out
    for words in ("1 threads", torch.__version__, "tokens equal", "share of its FLOPs", "limit"):
        assert words in printed
    assert all(figure.with_suffix(kind).stat().st_size > 1000 for kind in (".png", ".svg"))


def test_command_sweeps_one_size(tmp_path):
    out, figure = tmp_path / "out.csv", tmp_path / "lines"
    arguments = ("--growth", "image", "--only", "full", "--no-check", "--profile-rounds", 0)
    code = generate.main(command(*arguments, "--csv", out, "--plot", figure))
    with open(out, newline="") as file:
        sizes = [line["image_size"] for line in csv.DictReader(file)]
    assert code == 0 and sizes == ["16", "32", "48"]
    assert figure.with_suffix(".png").exists()


def test_sweeps_stay_inside_the_image_grid():
    largest = generate.growing(replace(TINY, image_size=128), "image")[-1].image_size
    assert largest == 128
    beams = [setting.beam for setting in generate.growing(TINY, "beam")]
    assert beams[0] == 1 and beams[-1] == 10


def test_command_fails_if_the_reference_disagrees(monkeypatch, capsys):
    monkeypatch.setattr(generate, "deviation", lambda *_: float("inf"))
    assert generate.main(command("--batch-size", 1)) == 1
    assert "tokens differ" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--image-size", 40), r"--image-size 40\b.*16"),
        (("--image-size", 64, "--text-length", 16), r"--text-length 16\b"),
        (("--depths", "1,2"), r"--depths.*'1,2'.*IMAGE,TEXT,DECODER"),
        (("--batch-size", "0"), r"--batch-size.*'0'.*\b1\b"),
        (("--device", "cuda", "--clock", "cpu"), r"--clock cpu\b.*cuda"),
    ],
)
def test_command_rejects_invalid_options(arguments, message, capsys):
    with pytest.raises(SystemExit):
        generate.main(command(*arguments))
    assert re.search(message, capsys.readouterr().err)


def test_peak_memory_covers_the_first_feature_map(monkeypatch, capsys):
    setting = replace(TINY, image_size=128, batch_size=8, text_length=6, threads=1)
    request = {"setting": setting.to_json(), "kind": "reference", "depths": None}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(request)))
    assert memory.main() == 0
    # 8 images, 24 channels, 64 x 64 cells in float32.
    assert 8 * 24 * 64 * 64 * 4 < int(capsys.readouterr().out) < 2**31


def as_python(path: Path, script: str, monkeypatch) -> None:
    """Let a shell script run in place of the Python interpreter."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(memory.sys, "executable", str(path))


def test_peak_memory_is_read_from_another_process(tmp_path, monkeypatch):
    script = f'cat > {tmp_path}/stdin; echo "$@" > {tmp_path}/arguments; echo a line; echo 4096'
    as_python(tmp_path / "python", script, monkeypatch)
    assert memory.peak_bytes(TINY, "exits", (1, 2, 3)) == 4096
    assert (tmp_path / "arguments").read_text().split()[-2:] == ["-m", "benchmarks.memory"]
    request = json.loads((tmp_path / "stdin").read_text())
    assert Setting(**json.loads(request["setting"])) == TINY
    assert (request["kind"], request["depths"]) == ("exits", [1, 2, 3])


def test_a_failure_of_the_other_process_is_reported(tmp_path, monkeypatch):
    as_python(tmp_path / "python", "echo depths 0,0,0 >&2; exit 3", monkeypatch)
    with pytest.raises(RuntimeError, match=r"exits.*--no-memory.*depths 0,0,0"):
        memory.peak_bytes(TINY, "exits", (0, 0, 0))


@pytest.mark.slow
def test_peak_memory_in_a_real_process():
    assert 0 < memory.peak_bytes(replace(TINY, threads=1), "exits", (1, 1, 1)) < 2**31
    with pytest.raises(RuntimeError, match=r"exits.*--no-memory"):
        memory.peak_bytes(TINY, "exits", (0, 0, 0))
