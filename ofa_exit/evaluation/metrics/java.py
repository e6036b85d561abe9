"""pycocoevalcap's Java tools (PTB tokenizer, METEOR) in processes that always end.

pycocoevalcap's own wrappers write into site-packages, may hang when they read from a dead process,
and wait for a lock forever when they are collected after an error. Here only the jars are used. The
command lines, and so the numbers, are those of the wrappers, but text is always read as UTF-8.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import pycocoevalcap.meteor.meteor as meteor_module
import pycocoevalcap.tokenizer.ptbtokenizer as ptb_module

# Without these, a C locale replaces accents by question marks and a German one writes 0,5.
JVM_OPTIONS = ("-Dfile.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US")
# METEOR takes its own place as a URL, and looks for its data in the encoded path: a space becomes
# %20. A colon ends an entry of the class path.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./-]+")
# What Java prints before the error that ends it.
_NOTICES = re.compile(r"Picked up |NOTE: |WARNING: |SLF4J|\S+ .*VM warning: |at ")
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
    # A line end inside a sentence (there are eight kinds) would shift all later sentences by one.
    text = "".join(" ".join(sentence.split()) + "\n" for sentence in sentences)
    tokenizer = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    with plain_folder(jar.parent, [jar.name]) as folder:
        command = [find_java(), *JVM_OPTIONS, "-cp", str(folder / jar.name), *tokenizer]
        output = run(command, "the PTB tokenizer", time_limit(len(sentences)), text)
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
    data = [f"data/{file.name}" for file in (jar.parent / "data").iterdir()]
    options = ["-", "-", "-stdio", "-l", "en", "-norm"]
    limit = time_limit(len(predictions))
    with plain_folder(jar.parent, [jar.name, *data]) as folder, tempfile.TemporaryFile() as errors:
        command = [find_java(), *JVM_OPTIONS, "-Xmx2G", "-jar", str(folder / jar.name), *options]
        process = _start(command, errors, folder)
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
            why = first_error(errors.read().decode(errors="replace"))
            if timed_out.is_set():
                why = f"it took more than {limit:g} s"
            raise JavaError(f"METEOR failed: {why}") from error
        finally:
            watchdog.cancel()
            _end(process)
            process.communicate()


@contextlib.contextmanager
def plain_folder(folder: Path, files: Sequence[str]) -> Iterator[Path]:
    """Yield a folder with ``files`` whose path Java's tools can read: ``folder``, or a copy.

    Java resolves symbolic links, so the files are linked hard where that is possible, and copied
    where it is not. Raises JavaError if there is no temporary folder with a plain path.
    """
    resolved = folder.resolve()
    if _PLAIN_PATH.fullmatch(str(resolved)):
        yield resolved
        return
    with plain_temporary_folder() as copy:
        for name in files:
            place(resolved / name, copy / name)
        yield copy


@contextlib.contextmanager
def plain_temporary_folder() -> Iterator[Path]:
    """Yield a new folder whose path has only ASCII letters, digits, and _ . - /."""
    places = [os.path.realpath(place) for place in (tempfile.gettempdir(), "/tmp", "/var/tmp")]
    plain = [p for p in places if _PLAIN_PATH.fullmatch(p) and os.access(p, os.W_OK)]
    if not plain:
        raise JavaError(
            f"the temporary folder {places[0]} has characters in its path that Java's tools cannot "
            "read. Set TMPDIR to another one"
        )
    with tempfile.TemporaryDirectory(dir=plain[0]) as name:
        yield Path(name)


def place(source: Path, target: Path) -> None:
    """Link or copy a file. Raises JavaError if that fails."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another file system, or another owner
        try:
            shutil.copyfile(source, target)
        except OSError as error:
            raise JavaError(f"{source} could not be copied for Java: {error}") from error


def run(
    command: Sequence[str],
    tool: str,
    limit: float,
    text: str = "",
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Return the output of a command fed with ``text``. Its process never outlives this call.

    Args:
        tool: its name in errors.
        limit: seconds.
        folder: where it runs.
        environment: further variables.
    Raises:
        JavaError: it failed, or took longer than ``limit``.
    """
    with tempfile.TemporaryFile() as errors:
        process = _start(command, errors, folder, environment)
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
            reason = first_error(errors.read().decode(errors="replace"))
            raise JavaError(f"{tool} ended with status {process.returncode}: {reason}")
    return output


def _start(
    command: Sequence[str],
    errors: IO[bytes],
    folder: Path | None,
    environment: Mapping[str, str] | None = None,
) -> subprocess.Popen:
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
            env={**os.environ, **(environment or {})},
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


def first_error(errors: str) -> str:
    """Return the line of a tool's error output that says why it ended: Java's first one.

    The lines below it are the places where the error passed. Python prints the reason last.
    """
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    told = [line for line in lines if not _NOTICES.match(line)]
    if not told:
        return lines[0] if lines else "no error message"
    if told[0].startswith("Traceback"):
        return told[-1]
    if told[0].endswith("initialization of VM"):  # the reason follows
        return ": ".join(told[:2])
    return told[0].removeprefix('Exception in thread "main" ')
