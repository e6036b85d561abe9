"""Rows of the data for cases: image, texts, and the words of every method's trace."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ofa_exit.cli.cases.words import measure_words
from ofa_exit.cli.generation import Generation
from ofa_exit.data.images import decode_image
from ofa_exit.data.row_examples import IMAGE_FIELD
from ofa_exit.data.thumbnails import png
from ofa_exit.evaluation.figures.cases import Answer, Case, Trace, Word, without_free_end
from ofa_exit.plugin.errors import UsageError


class CaseReader:
    """Reads the rows of traces from the data, and measures words with checkpoints.

    Args:
        generation: task and data.
        traces: of each method.
        checkpoints: of methods whose words are measured.
    """

    def __init__(
        self, generation: Generation, traces: Mapping[str, Trace], checkpoints: Mapping[str, str]
    ) -> None:
        self.generation, self.traces, self.checkpoints = generation, traces, checkpoints
        self.task = generation.task
        self.task.load_dataset(generation.subset)

    def cases(self, names: Sequence[str]) -> list[Case]:
        """Return the rows of these names. Raises UsageError if the data lacks one."""
        indices = self._indices(names)
        examples = {name: self._example(name, indices[name]) for name in names}
        answers = [self._answers(method, examples) for method in self.traces]
        cases = [
            Case(
                name=name,
                image=self._image(indices[name]),
                source=self.task.text(example.source),
                references=list(dict.fromkeys(example.references)),
                answers=own,
            )
            for (name, example), own in zip(examples.items(), zip(*answers))
        ]
        if len({case.source for case in cases}) > 1:
            return cases
        # One question for all rows, as in captioning, says nothing.
        return [Case(c.name, c.image, "", c.references, c.answers) for c in cases]

    def _image(self, index: int) -> bytes | None:
        file = self._rows.examples.file
        return _png(file.row(index)[IMAGE_FIELD], file.path.parent)

    def _indices(self, names: Sequence[str]) -> dict[str, int]:
        """Return the number of each row."""
        file, missing, found = self._rows.examples.file, set(names), {}
        for index in range(len(file)):
            name = " ".join(file.row(index)["uniq_id"].split())
            if name in missing:
                found[name] = index
                missing.discard(name)
            if not missing:
                return found
        raise UsageError(
            f"{file.path} has no row {min(missing)}, which the traces have: give the data that "
            "they were made of"
        )

    @property
    def _rows(self) -> Any:
        return self.task.dataset(self.generation.subset).rows

    def _example(self, name: str, index: int) -> Any:
        example = self.task.dataset(self.generation.subset)[index]
        if example is None:
            raise UsageError(f"row {name} cannot be read: name others by --rows")
        return example

    def _answers(self, method: str, examples: Mapping[str, Any]) -> list[Answer]:
        """Return a method's answers to all rows. Its model lives as long as this call."""
        file, model = self.checkpoints.get(method), None
        if file is not None:
            model = self.generation.load_model(file)
        collater = self.task.dataset(self.generation.subset).collater
        return [
            self._answer(method, self.traces[method][name], collater([example]), model)
            for name, example in examples.items()
        ]

    def _answer(
        self, method: str, record: Mapping[str, Any], sample: dict[str, Any], model: Any
    ) -> Answer:
        best = record["hypotheses"][0]
        measured: Any = ([None] * len(best["tokens"]),) * 2
        if model is not None:
            (sample,) = self.generation.on_device([sample], model)
            trie = getattr(self.task, "trie", None)
            measured = measure_words(model, sample, record, trie)
        texts = self.task.token_texts(best["tokens"])
        words = [
            Word(text, layer, *values)
            for text, layer, *values in zip(texts, best["layers"], *measured)
        ]
        words = without_free_end(words)
        return Answer(method, words, record["image_layers"], record["text_layers"])


def _png(field: str, folder: Path) -> bytes | None:
    """Return the image of a TSV field as PNG; None for an empty field."""
    return png(decode_image(field, folder)) if field.strip() else None
