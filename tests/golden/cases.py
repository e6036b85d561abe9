"""How each golden case is run: by fairseq's command-line arguments, through the task.

Neither models nor traces are reached into: what a case pins is what a user of the task sees.
"""

from __future__ import annotations

import json
import zlib
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fairseq import checkpoint_utils, options, tasks, utils
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.models import ARCH_CONFIG_REGISTRY
from helpers import task_files as files

ROOT = Path(__file__).resolve().parents[2]
EMOJI = ROOT / "examples" / "emoji"
CHECKPOINT = ROOT / "examples" / "checkpoints" / "ofa_nano_caption.pt"
ROWS = 60
SPLIT = {"split_modalities": True}
JOINT: dict[str, Any] = {}
EXITS = {"exit_layers": "1,2,4", **SPLIT}
QUESTIONS = ("What colour is it?", "is it dark", "does the image describe a square of paint?")
ANSWERS = (*files.COLOURS, "dark red", "dark green", "dark", "2", "two")
WORDS = (
    *files.WORDS,
    "colour",
    "is",
    "it",
    "dark",
    "2",
    "two",
    "big",
    "yes,",
    "very",
    "picture",
    "square.",
)


@dataclass
class Case:
    """One generation.

    model: options of the model; with exits, or of a task without a checkpoint, it is seeded.
    beam: None where nothing is searched. exits: options --exit-…; more: of anything else.
    """

    task: str
    model: dict[str, Any]
    batch: int
    beam: int | None
    exits: str = ""
    more: str = ""

    @property
    def has_exits(self) -> bool:
        return "exit_layers" in self.model


def similarity(image: float, text: float, decoder: float, more: str = "") -> str:
    """Thresholds of a split encoder and the decoder."""
    passes = f"--exit-image-threshold {image} --exit-text-threshold {text}"
    return f"--exit-policy similarity {passes} --exit-decoder-threshold {decoder} {more}"


def joint_similarity(encoder: float, decoder: float, more: str = "") -> str:
    """Thresholds of an encoder that runs both modalities together, and the decoder."""
    passes = f"--exit-encoder-threshold {encoder} --exit-decoder-threshold {decoder}"
    return f"--exit-policy similarity {passes} {more}"


def confidence(alpha: float, more: str = "") -> str:
    return f"--exit-policy confidence --exit-alpha {alpha} {more}"


def static(depths: str, more: str = "") -> str:
    return f"--exit-policy static --exit-depths {depths} {more}"


AGAIN = "--exit-kv recompute"
TOKENS = "--exit-encoder-similarity token_mean"
PROMPT = "--prompt-type prev_output"
OPEN = f"{PROMPT} --unnormalized --max-len-b 3"

CASES = {
    "caption_none_joint_batch7_beam5": Case("caption", JOINT, 7, 5),
    "caption_none_joint_batch1_beam1": Case("caption", JOINT, 1, 1),
    "caption_none_split_batch7_beam5": Case("caption", SPLIT, 7, 5),
    "caption_static_joint_batch7_beam5": Case("caption", JOINT, 7, 5, static("3,3,3")),
    "caption_static_split_batch7_beam5": Case("caption", SPLIT, 7, 5, static("2,3,2")),
    "caption_static_split_recompute_batch7_beam1": Case(
        "caption", SPLIT, 7, 1, static("2,3,2", AGAIN)
    ),
    "caption_similarity_split_batch7_beam5": Case(
        "caption", SPLIT, 7, 5, similarity(0.966, 0.95, 0.9)
    ),
    "caption_similarity_split_recompute_batch7_beam5": Case(
        "caption", SPLIT, 7, 5, similarity(0.966, 0.95, 0.9, AGAIN)
    ),
    "caption_similarity_split_static_batch7_beam1": Case(
        "caption", SPLIT, 7, 1, similarity(0.966, 0.95, 0.9, "--exit-schedule static")
    ),
    "caption_similarity_split_batch1_beam5": Case(
        "caption", SPLIT, 1, 5, similarity(0.966, 0.95, 0.9)
    ),
    "caption_similarity_split_recompute_batch7_beam1": Case(
        "caption", SPLIT, 7, 1, similarity(0.966, 0.95, 0.9, AGAIN)
    ),
    "caption_similarity_joint_batch7_beam5": Case(
        "caption", JOINT, 7, 5, joint_similarity(0.955, 0.9)
    ),
    "caption_similarity_joint_recompute_batch7_beam5": Case(
        "caption", JOINT, 7, 5, joint_similarity(0.955, 0.9, f"{AGAIN} --exit-schedule static")
    ),
    "caption_similarity_joint_tokens_batch1_beam1": Case(
        "caption", JOINT, 1, 1, joint_similarity(0.955, 0.9, TOKENS)
    ),
    "caption_confidence_batch7_beam5": Case("caption", EXITS, 7, 5, confidence(0.5)),
    "caption_confidence_recompute_batch7_beam5": Case(
        "caption", EXITS, 7, 5, confidence(0.5, AGAIN)
    ),
    "caption_confidence_two_layers_batch1_beam1": Case(
        "caption", EXITS, 1, 1, confidence(0.5, '--exit-options {"layers":[2,4]}')
    ),
    "caption_static_exit_batch7_beam5": Case("caption", EXITS, 7, 5, static("6,6,2")),
    "caption_static_exit_recompute_batch7_beam1": Case(
        "caption", EXITS, 7, 1, static("4,5,4", AGAIN)
    ),
    "entailment_none_joint_batch7": Case("snli_ve", JOINT, 7, None),
    "entailment_none_split_prompt_batch1": Case("snli_ve", SPLIT, 1, None, "", PROMPT),
    "entailment_static_joint_batch7": Case("snli_ve", JOINT, 7, None, static("3,3,3")),
    "entailment_static_split_batch7": Case("snli_ve", SPLIT, 7, None, static("2,3,2"), PROMPT),
    "entailment_similarity_split_batch7": Case(
        "snli_ve", SPLIT, 7, None, similarity(0.966, 0.94, 0.9), PROMPT
    ),
    "entailment_similarity_split_recompute_batch7": Case(
        "snli_ve", SPLIT, 7, None, similarity(0.966, 0.94, 0.9, AGAIN), PROMPT
    ),
    "entailment_similarity_split_batch1": Case(
        "snli_ve", SPLIT, 1, None, similarity(0.966, 0.94, 0.9, "--exit-schedule decay")
    ),
    "entailment_similarity_joint_batch7": Case(
        "snli_ve", JOINT, 7, None, joint_similarity(0.955, 0.9), PROMPT
    ),
    "entailment_similarity_joint_recompute_batch1": Case(
        "snli_ve", JOINT, 1, None, joint_similarity(0.955, 0.9, f"{AGAIN} {TOKENS}")
    ),
    "entailment_confidence_batch7": Case("snli_ve", EXITS, 7, None, confidence(0.5), PROMPT),
    "entailment_confidence_recompute_batch1": Case(
        "snli_ve", EXITS, 1, None, confidence(0.5, AGAIN), PROMPT
    ),
    "vqa_none_batch7": Case("vqa", SPLIT, 7, None, "", f"--nbest {len(ANSWERS)}"),
    "vqa_similarity_batch7": Case(
        "vqa", SPLIT, 7, None, similarity(0.75, 0.79, 0.8), f"{PROMPT} --nbest 5"
    ),
    "vqa_similarity_recompute_batch1": Case(
        "vqa", SPLIT, 1, None, similarity(0.75, 0.79, 0.8, AGAIN), f"{PROMPT} --nbest 5"
    ),
    "vqa_confidence_batch7": Case("vqa", EXITS, 7, None, confidence(0.93), f"{PROMPT} --nbest 5"),
    "vqa_open_similarity_batch7_beam5": Case("vqa", SPLIT, 7, 5, similarity(0.75, 0.79, 0.8), OPEN),
    "visdial_none_batch7": Case("visdial", SPLIT, 7, None),
    "visdial_similarity_batch7": Case(
        "visdial", SPLIT, 7, None, similarity(0.75, 0.8, 0.83, "--exit-schedule decay")
    ),
    "visdial_similarity_joint_recompute_batch1": Case(
        "visdial", JOINT, 1, None, joint_similarity(0.85, 0.85, AGAIN)
    ),
}


# ---------------------------------------------------------------------- data and models


def write_data(folder: Path) -> Path:
    """The files of all cases: the first emoji rows, and small ones of the other tasks."""
    files.write_dictionary(folder, WORDS)
    for task, name in (("caption", "caption"), ("snli_ve", "entailment")):
        with open(EMOJI / f"{name}_valid.tsv") as file:
            (folder / f"{task}.tsv").write_text("".join(next(file) for _ in range(ROWS)))
    files.write_tsv(folder / "vqa.tsv", [question_row(number) for number in range(21)])
    files.write_tsv(folder / "visdial.tsv", [dialog_row(number) for number in range(21)])
    (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in ANSWERS))
    return folder


def question_row(number: int) -> list[str]:
    colour = files.COLOURS[number % 5]
    answers = f"1.0|!+{colour}&&0.6|!+dark"
    return [f"q{number}", f"i{number}", QUESTIONS[number % 3], answers, "", striped(number)]


def dialog_row(number: int) -> list[str]:
    colours = files.COLOURS[number % 3 :]
    candidates = [f"it is {colour}" for colour in colours] + ["yes, very", "very very dark", "no"]
    history = f"a picture of a {files.COLOURS[number % 6]} square."
    question = ["What is it?", "is it big and dark"][number % 2]
    relevance = "&&".join(str(at % 2) for at in range(len(candidates)))
    told = [f"{number}_1", f"i{number}", history, question]
    return [*told, "&&".join(candidates), "1", relevance, striped(number)]


def striped(number: int) -> str:
    """Every row has a side of its own, and so a picture of its own."""
    return files.image_field(files.COLOURS[number % 5], 16 + number)


def drawn(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """A weight of a seeded model: by its name alone, whatever is built before it."""
    draw = np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("running_var"):
        value = 0.5 + np.abs(draw)
    elif name.endswith("c_attn") or (name.endswith("weight") and len(shape) == 1):
        value = 1 + 0.1 * draw
    elif "embed" in name or "rel_pos" in name:
        value = 0.5 * draw
    elif len(shape) > 1:
        value = draw / np.sqrt(np.prod(shape[1:]))
    else:
        value = 0.1 * draw
    return torch.from_numpy(np.asarray(value, dtype=np.float32))


def seeded_model(task: Any, case: Case) -> Any:
    """The model of a case, with drawn weights for all that the checkpoint does not have."""
    saved = {}
    sizes = dict(encoder_embed_dim=32, encoder_ffn_embed_dim=64, resnet_width=8)
    if case.task in ("caption", "snli_ve"):
        saved = torch.load(CHECKPOINT, map_location="cpu", weights_only=False)["model"]
        sizes = {}
    args = Namespace(arch="ofa_nano", **sizes, **case.model)
    ARCH_CONFIG_REGISTRY[args.arch](args)
    model = task.build_model(args, from_checkpoint=True)
    own = model.state_dict()
    for name, value in own.items():
        if name in saved:
            own[name] = saved[name]
        elif value.is_floating_point() and not name.endswith("version"):
            own[name] = drawn(name, tuple(value.shape))
    own["decoder.embed_tokens.weight"] = own["encoder.embed_tokens.weight"]
    own["decoder.output_projection.weight"] = own["encoder.embed_tokens.weight"]
    model.load_state_dict(own)
    return model.eval()


# ---------------------------------------------------------------------- running


def arguments(case: Case, data: Path, trace: Path) -> list[str]:
    """What fairseq-generate would be given."""
    emoji = case.task in ("caption", "snli_ve")
    given = [
        *[str(data / f"{case.task}.tsv"), "--task", f"mue_{case.task}", "--cpu"],
        *["--user-dir", str(ROOT / "user_dir"), "--bpe-dir", str(EMOJI if emoji else data)],
        *["--path", str(CHECKPOINT), "--model-overrides", str(case.model)],
        *["--patch-image-size", "64" if emoji else "32", "--code-dict-size", "0"],
        *["--num-bins", "0", "--num-workers", "0", "--batch-size", str(case.batch)],
        *["--required-batch-size-multiple", "1", "--exit-trace", str(trace)],
        *case.exits.split(),
        *case.more.split(),
    ]
    if case.beam is not None:
        given += ["--beam", str(case.beam)]
    if case.task == "caption":
        given += ["--max-len-b", "16"]
    if case.task == "vqa" and case.beam is None:
        given += ["--answers", str(data / "answers.txt")]
    if case.has_exits or not emoji:  # the model is no checkpoint's
        at = given.index("--path")
        del given[at : at + 4]
    return given


def run_case(case: Case, data: Path, trace: Path) -> dict[str, Any]:
    """What the case generates: its sentences by id, the summary and the operations."""
    utils.import_user_module(Namespace(user_dir=str(ROOT / "user_dir")))
    given = arguments(case, data, trace)
    parsed = options.parse_args_and_arch(options.get_generation_parser(), given)
    cfg = convert_namespace_to_omegaconf(parsed)
    task = tasks.setup_task(cfg.task)
    if cfg.common_eval.path:
        (model,), _ = checkpoint_utils.load_model_ensemble([str(CHECKPOINT)], case.model, task)
    else:
        model = seeded_model(task, case)
    model.prepare_for_inference_(cfg)
    task.load_dataset("test")
    batches = task.get_batch_iterator(
        task.dataset("test"),
        max_sentences=cfg.dataset.batch_size,
        max_positions=utils.resolve_max_positions(task.max_positions(), model.max_positions()),
        required_batch_size_multiple=1,
    ).next_epoch_itr(shuffle=False)
    generator = task.build_generator([model], cfg.generation)
    found = {}
    for sample in batches:
        names = list(sample["uniq_ids"])
        found.update(zip(names, task.inference_step(generator, [model], sample)))
    report = task.exit_reports[0]
    report.close()
    lines = [json.loads(line) for line in trace.read_text().splitlines()]
    return {
        "sentences": {line["id"]: sentence(line, found[line["id"]]) for line in lines},
        "summary": summary(report.summary(), case.has_exits),
        "operations": operations(report.totals()),
    }


def sentence(line: dict[str, Any], hypotheses: list[dict[str, Any]]) -> list[Any]:
    """Image layers, text layers, and of each hypothesis its tokens, the layers used, its score and
    its positional scores."""
    told = []
    for detail, hypothesis in zip(line["hypotheses"], hypotheses, strict=True):
        tokens = hypothesis["tokens"].tolist()
        assert tokens == detail["tokens"]
        scores = [hypothesis["score"], *hypothesis["positional_scores"].tolist()]
        told.append([tokens, detail["layers"], *(round(float(score), 6) for score in scores)])
    return [line["image_layers"], line["text_layers"], told]


def summary(values: dict[str, Any], has_exits: bool) -> dict[str, Any]:
    """The report's numbers without times; MuE's expected one is not for models with exits."""
    left_out = {"seconds", "seconds_per_sentence", "expected_time_reduction_without_prompt"}
    if has_exits:
        left_out.add("expected_time_reduction")
    return {name: value for name, value in values.items() if name not in left_out}


def operations(totals: Any) -> dict[str, Any]:
    """Operations by part, executed and at full depth, and those of position biases."""
    biases = sum(totals.biases.values())
    return {"executed": dict(totals.executed), "full": dict(totals.full), "biases": biases}
