"""``ofa-exit VERB …``: import the verb's module and run it.

A verb is a module of this folder with ``main(argv) -> exit status``. Only the module in use is
imported, and it imports what is slow (torch, fairseq) after it has parsed its arguments. So help
and errors of arguments come at once.
"""

import importlib
import sys
from collections.abc import Sequence

import ofa_exit
from ofa_exit.cli.parsing import print_error
from ofa_exit.spelling import nearest
from ofa_exit.writing import WriteError

VERBS = {
    "predict": "caption your own images, or ask about them",
    "tsv": "make a TSV file of your own images: a folder, or a CSV with texts",
    "dict": "write dict.txt, the words of your own texts",
    "check": "read a whole TSV file and list every bad row",
    "prepare": "convert an official release to TSV files",
    "holdout": "split a validation file into rows to train on and held-out rows",
    "references": "join all captions of an image in one row, for the CIDEr stage",
    "document-frequencies": "count n-grams of the training captions, for CIDEr-D rewards",
    "capfilt": "filter sampled captions by image-text similarity (CapFilt)",
    "sweep": "measure quality and savings of many exit settings",
    "choose": "select an exit setting on one split and report it on others",
    "calibrate": "select an exit setting with a guarantee, for --exit-config",
    "fit-gate": "fit the gate of --exit-policy learned on traces of full depth",
    "compare": "compare methods: tables and curves of their sweeps",
    "plot": "draw quality against savings",
    "layers": "measure quality after each decoder layer and at each exit",
    "plot-layers": "draw what `layers` measured and suggest --exit-layers",
    "saturation": "measure the cosine similarity of layer states",
    "table": "compare finished generations",
    "cases": "colour generated words by their exit layer",
    "score": "compute the official metrics of a result file",
    "submit": "write a benchmark's result file from generated text",
    "merge": "merge the shards of a generation",
    "export": "strip optimizer state and local paths from a checkpoint",
    "verify": "compare the model with the official one, number by number",
    "cost": "estimate compute and memory of training and generation",
    "user-dir": "print the folder for fairseq's --user-dir",
}


def help_text() -> str:
    verbs = "\n".join(f"  {verb:22}{text}" for verb, text in VERBS.items())
    return (
        "usage: ofa-exit VERB [arguments]\n\n"
        "Early exits for OFA. Training and generation run by fairseq-train and\n"
        "fairseq-generate with --user-dir $(ofa-exit user-dir).\n\n"
        f"{verbs}\n\nofa-exit VERB --help explains one of them."
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb that ``argv`` (default: the command line) starts with; return its status."""
    verb, *arguments = (sys.argv[1:] if argv is None else argv) or [""]
    if verb in ("", "-h", "--help"):
        print(help_text(), file=sys.stdout if verb else sys.stderr)
        return 0 if verb else 2
    if verb == "--version":
        print(f"ofa-exit {ofa_exit.__version__}")
        return 0
    if verb not in VERBS:
        near = nearest(verb, VERBS)
        hint = f"did you mean {near}?" if near else "ofa-exit --help lists all verbs"
        print(f"ofa-exit: error: unknown verb {verb!r}: {hint}", file=sys.stderr)
        return 2
    module = importlib.import_module(f"ofa_exit.cli.{verb.replace('-', '_')}")
    try:
        return module.main(arguments)
    except WriteError as error:
        return print_error(verb, error)
    except ValueError as error:
        text = usage_error(error)
        if text is None:
            raise
        return print_error(verb, text)


def usage_error(error: ValueError) -> str | None:
    """Return the message of an error that the user can mend, None for any other error."""
    from ofa_exit.data.tsv import TsvError
    from ofa_exit.plugin.errors import UsageError  # imports fairseq

    if not isinstance(error, (UsageError, TsvError)):
        return None
    # The error of a data-loading worker carries the worker's traceback in front of its message.
    return str(error).rpartition(f"{TsvError.__name__}: ")[2].strip()
