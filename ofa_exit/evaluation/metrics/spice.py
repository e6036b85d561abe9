"""SPICE by pycocoevalcap's own scorer, in a process that always ends.

The scorer downloads its language models into site-packages when it is made, and writes there. It
runs in a temporary folder with its own files and the models, so that it finds everything there.
"""

import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path

import pycocoevalcap.spice as spice_package

from ofa_exit.evaluation.metrics import java

MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
MODELS_URL = "https://nlp.stanford.edu/software/stanford-corenlp-full-2015-12-09.zip"
# SPICE's cache library accesses these packages, which Java 16 and later close.
_PACKAGES = (
    "java.lang", "java.math", "java.util", "java.util.concurrent", "java.net", "java.text",
)  # fmt: skip
# Run in the folder that holds the package: reads captions.json, writes score.json.
_PROGRAM = """
import json
from spice.spice import Spice
with open("captions.json") as file:
    truth, results = json.load(file)
score, _ = Spice().compute_score(truth, results)
with open("score.json", "w") as file:
    json.dump(float(score), file)
"""


def find_models(jars: str | None = None) -> Path:
    """Return the folder of SPICE's two language models.

    Args:
        jars: the folder, --spice-jars. None: where pycocoevalcap keeps them.
    Raises:
        java.JavaError: they are missing. The message says where to put them.
    """
    folder = Path(jars) if jars else _package() / "lib"
    missing = [name for name in MODELS if not (folder / name).is_file()]
    if missing:
        raise java.JavaError(
            f"{folder} lacks {' and '.join(missing)}. Unpack {MODELS_URL}, put "
            f"{' and '.join(MODELS)} into one folder, and name it with --spice-jars DIR"
        )
    return folder


def spice(
    predictions: Sequence[str], references: Sequence[Sequence[str]], jars: str | None = None
) -> float:
    """Return the mean SPICE F-score (Anderson et al. 2016) of captions, between 0 and 1.

    Args:
        jars: folder of the language models, see `find_models`.
    Raises:
        java.JavaError: no Java, no models, or the scorer failed; also after `java.time_limit`.
    """
    models, package = find_models(jars), _package()
    java.find_java()
    with java.plain_temporary_folder() as folder:
        for source in (*package.glob("*.py"), *package.glob("*.jar"), *package.glob("lib/*.jar")):
            java.place(source, folder / "spice" / source.relative_to(package))
        for name in MODELS:
            target = folder / "spice" / "lib" / name
            if not target.exists():
                java.place(models / name, target)
        captions = [
            dict(enumerate([list(refs) for refs in references])),
            {number: [prediction] for number, prediction in enumerate(predictions)},
        ]
        (folder / "captions.json").write_text(json.dumps(captions), encoding="utf-8")
        opened = [f"--add-opens=java.base/{name}=ALL-UNNAMED" for name in _PACKAGES]
        environment = {
            "JAVA_TOOL_OPTIONS": " ".join(java.JVM_OPTIONS),
            "JDK_JAVA_OPTIONS": " ".join(opened),  # not read by Java 8, which needs none of them
        }
        command, limit = [sys.executable, "-c", _PROGRAM], java.time_limit(len(predictions))
        java.run(command, "SPICE", limit, folder=folder, environment=environment)
        score = float(json.loads((folder / "score.json").read_text(encoding="utf-8")))
    if math.isnan(score):
        raise java.JavaError("SPICE gave no score for some captions")
    return score


def _package() -> Path:
    return Path(spice_package.__file__).parent
