"""pycocoevalcap's Java tools (PTB tokenizer, METEOR, SPICE) in processes that always end.

pycocoevalcap's own wrappers write into site-packages, may hang when they read from a dead process,
and wait for a lock forever when they are collected after an error. Here only the jars are used. The
command lines, and so the numbers, are those of the wrappers, but text is always read as UTF-8.
"""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import pycocoevalcap.meteor.meteor as meteor_module
import pycocoevalcap.spice as spice_module
import pycocoevalcap.tokenizer.ptbtokenizer as ptb_module

# Without these, a C locale replaces accents by question marks and a German one writes 0,5.
JVM_OPTIONS = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
SPICE_MODELS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")
# SPICE's cache library accesses these packages, which Java 16 and later close.
SPICE_PACKAGES = (
    "java.lang", "java.math", "java.util", "java.util.concurrent", "java.net", "java.text",
)  # fmt: skip
START_SECONDS = 180.0
SECONDS_PER_SENTENCE = 0.5


class JavaError(RuntimeError):
    """A Java tool is missing, failed or timed out; the text says which and why."""


def find_java() -> str:
    """Return the path of the ``java`` command. Raises JavaError if there is none."""
    java = shutil.which("java")
    if java is None:
        raise JavaError("no java command on the PATH (install a Java runtime, version 8 or later)")
    return java


def time_limit(sentences: int) -> float:
    """Return the seconds a tool may take: far more than it needs."""
    return START_SECONDS + SECONDS_PER_SENTENCE * sentences


def ptb_tokenize(sentences: Sequence[str]) -> list[str]:
    """Return the PTB tokens of each sentence: lower-cased, without punctuation, joined by spaces.

    The result equals that of pycocoevalcap's PTBTokenizer. Raises JavaError.
    """
    if not sentences:
        return []
    jar = Path(ptb_module.__file__).with_name(ptb_module.STANFORD_CORENLP_3_4_1_JAR)
    command = [find_java(), *JVM_OPTIONS, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer"]
    # A line end inside a sentence (there are eight kinds) would shift all later sentences by one.
    text = "".join(" ".join(sentence.split()) + "\n" for sentence in sentences)
    output = _run(
        [*command, "-preserveLines", "-lowerCase"],
        "the PTB tokenizer",
        time_limit(len(sentences)),
        text,
    )
    lines = output.split("\n")[:-1]
    if len(lines) != len(sentences):
        raise JavaError(f"the PTB tokenizer gave {len(lines)} lines for {len(sentences)} sentences")
    punctuation = set(ptb_module.PUNCTUATIONS)
    return [" ".join(word for word in line.split() if word not in punctuation) for line in lines]


def meteor(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the corpus METEOR of tokenised captions, between 0 and 1.

    Denkowski and Lavie 2014, version 1.5 with ``-l en -norm``, as in pycocoevalcap. Raises
    JavaError, also after `time_limit`.
    """
    jar = Path(meteor_module.__file__).with_name(meteor_module.METEOR_JAR)
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    command = [find_java(), *JVM_OPTIONS, "-Xmx2G", "-jar", str(jar), *options]
    limit = time_limit(len(predictions))
    with tempfile.TemporaryFile() as errors:
        process = _start(command, errors, jar.parent)
        # A read blocks until the process ends, so the watchdog ends the process.
        timed_out = threading.Event()

        def stop() -> None:
            timed_out.set()
            _end(process)

        watchdog = threading.Timer(limit, stop)
        watchdog.start()
        try:
            statistics = [
                _ask(process, " ||| ".join(["SCORE", *map(_no_bars, refs), _no_bars(prediction)]))
                for prediction, refs in zip(predictions, references, strict=True)
            ]
            # EVAL is answered by one score per sentence, then by the score of the corpus.
            _ask(process, " ||| ".join(["EVAL", *statistics]))
            for _ in statistics[1:]:
                _answer(process)
            return float(_answer(process))
        except (OSError, ValueError) as error:
            errors.seek(0)
            output = errors.read().decode(errors="replace")
            why = _tail(output) if not timed_out.is_set() else f"it took more than {limit:g} s"
            raise JavaError(f"METEOR failed: {why}") from error
        finally:
            watchdog.cancel()
            _end(process)
            process.communicate()


def spice(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean SPICE F-score (Anderson et al. 2016, jar 1.0) of captions, between 0 and 1.

    Its language models are not part of pycocoevalcap. JavaError says where to put them.
    """
    folder = Path(spice_module.__file__).parent
    missing = [name for name in SPICE_MODELS if not (folder / "lib" / name).exists()]
    if missing:
        raise JavaError(f"its models ({' and '.join(missing)}) are not in pycocoevalcap/spice/lib")
    java = find_java()
    opened = [f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in SPICE_PACKAGES]
    with tempfile.TemporaryDirectory() as scratch:
        source, result = Path(scratch, "in.json"), Path(scratch, "out.json")
        items = [
            {"image_id": number, "test": prediction, "refs": list(refs)}
            for number, (prediction, refs) in enumerate(zip(predictions, references, strict=True))
        ]
        source.write_text(json.dumps(items), encoding="utf-8")
        command = [java, *JVM_OPTIONS, *opened, "-Xmx8G", "-jar", "spice-1.0.jar", str(source)]
        command += ["-cache", scratch, "-out", str(result), "-subset", "-silent"]
        _run(command, "SPICE", time_limit(len(predictions)), "", folder)
        try:
            answers = json.loads(result.read_text(encoding="utf-8"))
            scores = [float(answer["scores"]["All"]["f"]) for answer in answers]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise JavaError(f"SPICE wrote no scores that can be read ({error})") from error
    if len(scores) != len(predictions):
        raise JavaError(f"SPICE gave {len(scores)} scores for {len(predictions)} captions")
    return sum(scores) / len(scores)


def _run(
    command: Sequence[str], tool: str, limit: float, text: str, folder: Path | None = None
) -> str:
    """Return the output of a command fed with ``text``. Its process never outlives this call."""
    with tempfile.TemporaryFile() as errors:
        process = _start(command, errors, folder)
        try:
            output, _ = process.communicate(text, limit)
        except BaseException as error:
            _end(process)
            process.wait()
            if isinstance(error, subprocess.TimeoutExpired):
                raise JavaError(f"{tool} took more than {limit:g} s") from error
            raise
        if process.returncode != 0:
            errors.seek(0)
            reason = _tail(errors.read().decode(errors="replace"))
            raise JavaError(f"{tool} ended with status {process.returncode}: {reason}")
    return output


def _start(command: Sequence[str], errors: IO[bytes], folder: Path | None) -> subprocess.Popen:
    """Start a process group: ``java`` is often a script that starts the real one."""
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            encoding="utf-8",
            errors="replace",
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:
        raise JavaError(f"{command[0]} did not start: {error}") from error


def _end(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


def _ask(process: subprocess.Popen, question: str) -> str:
    assert process.stdin is not None
    process.stdin.write(question + "\n")
    process.stdin.flush()
    return _answer(process)


def _answer(process: subprocess.Popen) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line.strip():
        raise ValueError("no answer")
    return line.strip()


def _no_bars(caption: str) -> str:
    """Remove |||, the tool's field separator, from a caption, as pycocoevalcap does."""
    return caption.replace("|||", "").replace("  ", " ")


def _tail(errors: str) -> str:
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    return lines[-1] if lines else "no error message"
