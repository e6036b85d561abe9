"""Each defect exists in the installed fairseq and torch, and its repair works."""

import argparse
import importlib
import io
import pickle
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.distributed as dist
from fairseq import checkpoint_utils, trainer
from fairseq.data import FairseqDataset, data_utils
from fairseq.dataclass.configs import DistributedTrainingConfig
from fairseq.dataclass.utils import convert_namespace_to_omegaconf
from fairseq.distributed import utils as distributed_utils
from fairseq.models import DistributedFairseqModel, distributed_fairseq_model
from fairseq.optim.composite import FairseqCompositeOptimizer
from fairseq.tasks import FairseqTask
from omegaconf import OmegaConf

import ofa_exit
from ofa_exit.plugin import compat

UNPATCHED = data_utils.batch_by_size.__wrapped__


class Sentences(FairseqDataset):
    """n sentences of 5 tokens each; a batch is the list of its sentences' numbers."""

    def __init__(self, n: int, vectorised: bool = True):
        self.n, self.vectorised = n, vectorised

    def __len__(self):
        return self.n

    def __getitem__(self, index):
        return index

    def collater(self, samples):
        return samples

    def num_tokens(self, index):
        return 5

    def num_tokens_vec(self, indices):
        if not self.vectorised:
            raise NotImplementedError
        return np.full(len(indices), 5)

    def ordered_indices(self):
        return np.arange(self.n)[::-1]


def test_fairseq_drops_the_last_batch():
    vec = np.full(11, 5)
    lost = UNPATCHED(
        np.arange(11), lambda i: 5, vec, max_sentences=8, required_batch_size_multiple=8
    )
    assert sum(map(len, lost)) == 8
    with pytest.raises(IndexError):
        UNPATCHED(
            np.arange(0), lambda i: 5, vec[:0], max_sentences=8, required_batch_size_multiple=8
        )


@pytest.mark.parametrize("vectorised", [True, False])
@pytest.mark.parametrize("n", [1, 5, 8, 11, 461])
@pytest.mark.parametrize(
    "limits", [{"max_sentences": 32}, {"max_sentences": 3}, {"max_tokens": 200}]
)
def test_every_sentence_is_batched_once(n, limits, vectorised):
    """Through the path of fairseq-train, fairseq-validate and fairseq-generate."""
    dataset = Sentences(n, vectorised)
    task = FairseqTask(argparse.Namespace())
    itr = task.get_batch_iterator(dataset, required_batch_size_multiple=8, **limits)
    batches = list(itr.next_epoch_itr(shuffle=False))
    assert sorted(i for batch in batches for i in batch) == list(range(n))
    assert all(len(batch) <= limits.get("max_sentences", 40) for batch in batches)


def test_complete_batches_are_fairseqs_own():
    args = (np.arange(64), lambda i: 5, np.full(64, 5))
    kwargs = {"max_sentences": 16, "required_batch_size_multiple": 8}
    ours, theirs = data_utils.batch_by_size(*args, **kwargs), UNPATCHED(*args, **kwargs)
    assert [list(b) for b in ours] == [list(b) for b in theirs]


def test_iterators_and_empty_indices():
    batches = data_utils.batch_by_size(
        (i for i in (7, 3, 5)), lambda i: 5, max_sentences=2, required_batch_size_multiple=8
    )
    assert [i for batch in batches for i in batch] == [7, 3, 5]
    assert Sentences(0).batch_by_size(np.arange(0), max_sentences=2) == []


def test_fixed_shapes_are_unchanged():
    batches = data_utils.batch_by_size(
        np.arange(6), lambda i: 5, required_batch_size_multiple=8, fixed_shapes=[(4, 10)]
    )
    assert [list(b) for b in batches] == [[0, 1, 2, 3], [4, 5]]


def train_config(data) -> SimpleNamespace:
    dataset = SimpleNamespace(
        ignore_unused_valid_subsets=False,
        combine_valid_subsets=False,
        disable_validation=False,
        valid_subset="valid",
    )
    return SimpleNamespace(dataset=dataset, task=SimpleNamespace(data=data))


def test_training_on_files_instead_of_folders(tmp_path):
    files = f"{tmp_path}/train.tsv,{tmp_path}/valid.tsv"
    with pytest.raises(FileNotFoundError):
        data_utils._find_extra_valid_paths.__wrapped__(files)
    data_utils.raise_if_valid_subsets_unintentionally_ignored(train_config(files))


def test_unused_validation_sets_in_folders_are_still_found(tmp_path):
    (tmp_path / "valid1.tsv").touch()
    folders = f"{tmp_path}:{tmp_path}/valid1.tsv"
    with pytest.raises(ValueError, match="valid1"):
        data_utils.raise_if_valid_subsets_unintentionally_ignored(train_config(folders))


def test_side_files_are_no_validation_sets(tmp_path):
    for name in ("valid.tsv", "valid1.tsv.manifest.json", "valid1.tsv.offsets", "valid2.csv"):
        (tmp_path / name).touch()
    assert data_utils._find_extra_valid_paths.__wrapped__(str(tmp_path))  # fairseq's own finds them
    data_utils.raise_if_valid_subsets_unintentionally_ignored(train_config(str(tmp_path)))


@pytest.fixture
def process_group(tmp_path):
    dist.init_process_group("gloo", f"file://{tmp_path}/store", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_pytorch_ddp_wraps_a_model_on_the_cpu(process_group, monkeypatch):
    cfg = DistributedTrainingConfig(ddp_backend="pytorch_ddp", find_unused_parameters=True)
    cfg.tpu, cfg.device_id = False, None  # as the trainer has it for --cpu
    model, cpu = torch.nn.Linear(2, 2), torch.device("cpu")
    wrapped = DistributedFairseqModel(cfg, model, process_group, cpu)
    wrapped(torch.ones(1, 2)).sum().backward()
    assert model.weight.grad.tolist() == [[1, 1], [1, 1]]

    patched = distributed_fairseq_model.DistributedDataParallel
    monkeypatch.setattr(distributed_fairseq_model, "DistributedDataParallel", patched.__wrapped__)
    with pytest.raises(ValueError, match="device_ids"):
        DistributedFairseqModel(cfg, model, process_group, cpu)


def test_importing_twice_changes_nothing():
    def patched():
        return (
            data_utils.batch_by_size,
            data_utils._find_extra_valid_paths,
            checkpoint_utils.convert_namespace_to_omegaconf,
            distributed_fairseq_model.DistributedDataParallel,
            trainer._catalog_shared_params,
            FairseqCompositeOptimizer.__init__,
        )

    before = patched()
    assert all(function.__wrapped__ for function in before)
    importlib.reload(compat)
    assert patched() == before


def test_replacements_of_one_function_stack():
    owner = SimpleNamespace(function=lambda: ["original"])

    def inner(function):
        return ["inner", *function()]

    def outer(function):
        return ["outer", *function()]

    for replacement in (inner, outer, inner, outer):
        compat.patch(owner, "function")(replacement)
    assert owner.function() == ["outer", "inner", "original"]


def stored() -> dict:
    """What the checkpoints of fairseq and of OFA's release hold besides tensors."""
    namespace = argparse.Namespace(arch="ofa_base", label_smoothing=0.1, data=["a.tsv"])
    return {
        "args": namespace,
        "cfg": {"model": namespace, "task": {"_name": "caption", "num_bins": 1000}},
        "best": np.float64(1.5),
        "small": [np.float32(0.5), np.int64(3), np.bool_(True), np.float16(2)],
        "array": np.arange(4.0),
        # what is broadcast where one process reads the checkpoint for all
        "sent": distributed_utils._split_tensors_from_obj({"weight": torch.ones(2)}, []),
    }


def untyped_config():
    return OmegaConf.create({"lr": [0.1, 1], "adam": {"eps": 1e-8, "betas": "${lr}"}, "x": None})


def load(obj):
    file = io.BytesIO()
    torch.save(obj, file)
    file.seek(0)
    return torch.load(file)


@pytest.fixture
def without_the_repair():
    allowed = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    yield
    torch.serialization.add_safe_globals(allowed)


@pytest.mark.parametrize("key", ["args", "best", "array", "sent"])
def test_torch_rejects_these_without_the_repair(key, without_the_repair):
    with pytest.raises(pickle.UnpicklingError, match="add_safe_globals"):
        load(stored()[key])


@pytest.mark.parametrize("allowed", compat.checkpoint_classes(), ids=str)
def test_every_allowed_class_is_needed(allowed):
    """Every allowed class is named by something that this file loads, or is a numpy type."""
    name = allowed[1] if isinstance(allowed, tuple) else f"{allowed.__module__}.{allowed.__name__}"
    named = unsafe_globals(stored()) | unsafe_globals(untyped_config())
    other_numpy = {name.replace("_core", "core") for name in named if name.startswith("numpy")}
    assert name in named | other_numpy or name.startswith("numpy.dtypes.")


def unsafe_globals(obj) -> set[str]:
    file = io.BytesIO()
    torch.save(obj, file)
    file.seek(0)
    known = torch.serialization.get_safe_globals()
    torch.serialization.clear_safe_globals()
    try:
        return set(torch.serialization.get_unsafe_globals_in_checkpoint(file))
    finally:
        torch.serialization.add_safe_globals(known)


def test_classes_in_checkpoints_load():
    loaded = load(stored())
    assert loaded["args"] == stored()["args"]
    assert loaded["cfg"] == stored()["cfg"]
    assert (loaded["array"] == stored()["array"]).all()
    assert distributed_utils._put_tensors_in_obj(loaded["sent"], [7]) == {"weight": 7}
    for new, old in zip(loaded["small"] + [loaded["best"]], stored()["small"] + [1.5], strict=True):
        assert new == old
    assert type(loaded["small"][0]) is np.float32


def test_a_stored_configuration_loads():
    config = load(untyped_config())
    assert config == untyped_config()
    assert list(config.adam.betas) == [0.1, 1]


@pytest.mark.parametrize("module", compat.NUMPY_MODULES)
def test_pickles_of_numpy_1_and_2_load(module, monkeypatch):
    dump = pickle.dumps({"a": np.float64(2), "b": np.ones(3)}, protocol=2)
    assert b"numpy._core.multiarray" in dump or b"numpy.core.multiarray" in dump
    for name in compat.NUMPY_MODULES:
        dump = dump.replace(f"c{name}\n".encode(), f"c{module}\n".encode())
    unpickled = torch._weights_only_unpickler.load(io.BytesIO(dump))
    assert unpickled["a"] == 2
    assert unpickled["b"].tolist() == [1, 1, 1]


class Stranger:
    pass


def test_unknown_classes_are_still_rejected():
    with pytest.raises(pickle.UnpicklingError, match="Stranger"):
        load(Stranger())
    with pytest.raises(pickle.UnpicklingError, match="eval"):
        load({"cfg": eval})


def checkpoint(**arguments) -> dict:
    """As the trainer stores it, with the arguments under ``args`` or ``cfg``."""
    return {
        "model": {"weight": torch.ones(2)},
        "args": None,
        "cfg": None,
        "extra_state": {"train_iterator": {"epoch": 1}, "val_loss": np.float64(1), "best": 1.0},
        "optimizer_history": [
            {"optimizer_name": "adam", "num_updates": 1, "lr_scheduler_state": {"best": 1.0}}
        ],
        "last_optimizer_state": {},
        **arguments,
    }


OFFICIAL_ARGS = argparse.Namespace(
    arch="transformer",
    encoder_embed_dim=64,
    task="caption",
    criterion="adjust_label_smoothed_cross_entropy",
    optimizer="adam",
    lr_scheduler="polynomial_decay",
    data="a.tsv,b.tsv",
    patch_image_size=384,
)


def test_fairseq_cannot_read_args_with_unknown_parts():
    unpatched = checkpoint_utils.convert_namespace_to_omegaconf.__wrapped__
    with pytest.raises(KeyError, match="caption"):
        unpatched(OFFICIAL_ARGS)


@pytest.mark.parametrize("key", ["args", "cfg"])
def test_fairseq_loads_checkpoints_with_unknown_parts(key, tmp_path):
    arguments = {"args": OFFICIAL_ARGS} if key == "args" else {"cfg": {"model": OFFICIAL_ARGS}}
    torch.save(checkpoint(**arguments), tmp_path / "checkpoint.pt")
    loaded = checkpoint_utils.load_checkpoint_to_cpu(str(tmp_path / "checkpoint.pt"))
    assert loaded["cfg"]["model"].encoder_embed_dim == 64
    assert loaded["model"]["weight"].tolist() == [1, 1]
    if key == "args":
        assert loaded["cfg"]["task"]["_name"] == "caption"
        assert loaded["cfg"]["task"]["patch_image_size"] == 384  # which is compared
        assert loaded["cfg"]["optimizer"]["_name"] == "adam"


class Shared(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = (torch.nn.Linear(2, 2, bias=False) for _ in range(2))
        self.inner = torch.nn.Sequential(torch.nn.Linear(2, 2, bias=False))
        self.inner[0].weight = self.first.weight


def test_parameters_that_are_none_are_not_shared():
    tied = ["first.weight", "inner.0.weight"]
    unpatched = trainer._catalog_shared_params.__wrapped__
    assert ["first.bias", "second.bias", "inner.0.bias"] in unpatched(Shared())
    assert trainer._catalog_shared_params(Shared()) == [tied]


@pytest.mark.parametrize("requested", [False, True])
def test_warnings_about_fairseq_are_hidden_unless_requested(requested, monkeypatch):
    monkeypatch.setattr("sys.warnoptions", ["default"] if requested else [])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        compat.hide_warnings_about_fairseq()
        convert_namespace_to_omegaconf(argparse.Namespace())
        warnings.warn("of somebody else", stacklevel=1)
    shown = " ".join(str(warning.message) for warning in seen)
    assert "of somebody else" in shown
    assert ("hydra" in shown) == requested


def _twice(x: int) -> int:
    return 2 * x


@pytest.mark.parametrize("requested", [False, True])
def test_warnings_about_torchscript_are_hidden_unless_requested(requested, monkeypatch):
    """Hidden by the package itself, before fairseq is imported."""
    monkeypatch.setattr("sys.warnoptions", ["default"] if requested else [])
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        importlib.reload(ofa_exit)
        torch.jit.script(_twice)
        warnings.warn("`torch.jit.trace` is deprecated", FutureWarning, stacklevel=1)
    shown = [str(warning.message) for warning in seen if warning.category is FutureWarning]
    assert [("script" in text) for text in shown] == [*[True] * requested, False]


def test_checkpoints_without_a_criterion(tmp_path):
    """Exported ones; fairseq saves None for a criterion without parameters."""
    load = checkpoint_utils.load_checkpoint_to_cpu
    history = [{"num_updates": 1, "criterion_name": "", "lr_scheduler_state": {}}]
    state = {"optimizer_history": history, "extra_state": {}, "args": OFFICIAL_ARGS, "cfg": None}
    state["model"] = {"weight": torch.ones(2)}
    torch.save(state, tmp_path / "exported.pt")
    assert load(tmp_path / "exported.pt")["criterion"] is None
