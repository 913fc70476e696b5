"""The labels of a dataset's features: all of them, adding to them, files of them, and making some."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp_embed.aggregate.matrices import feature_count
from interp_embed.core.memory import memory_budget
from interp_embed.exchange.saving import expanded
from interp_embed.inputs import check_positive
from interp_embed.labels.record import FeatureLabel, best_labels
from interp_embed.labels.report import LabelsAdded, NamedFeatures, Shown
from interp_embed.latents import Latents

if TYPE_CHECKING:
    import os
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from interp_embed.analysis.lexical import Strongest
    from interp_embed.core.chunk import Chunk
    from interp_embed.store.labels.collection import Answers

__all__ = ["Naming"]

_READ_DOCUMENTS = 256
_CANDIDATES = 3
"""Documents that are read for each that counts: some may have the same text."""
_USUAL_DOCUMENTS, _USUAL_CHARACTERS = 2048, 4096
_PAIRS = 2**18
"""Pairs of a feature and a document that are read together: 8 words of each are held."""


class Naming(Latents):
    """What the features of a dataset are called.

    Labels belong to the store: what is added through a view is there for every view of the store.
    """

    @property
    def answers(self) -> Answers:
        """Answers of language models by the digest of the request, kept in the store."""
        return self._store.answers

    def label_records(self) -> list[FeatureLabel]:
        """Return every label of every feature, those that other processes have added included.

        Returns
        -------
        list of FeatureLabel
            In order of features, then of time.
        """
        self._store.labels.refresh()
        return self._store.labels.all(*self._first_labels())

    def labels(self) -> pd.DataFrame:
        """Return every label of every feature as a table.

        Returns
        -------
        DataFrame
            ``feature``; ``label``; ``best``, whether it is the one that `feature_labels` returns;
            ``source`` (see `FeatureLabel`); ``brief_description``, ``detailed_explanation``,
            ``model``, ``prompt_version``, ``seed``, ``origin`` and ``created``; the score that
            counts, as ``score_method``, ``score``, ``low``, ``high``, ``n`` (missing where there is
            none); ``n_scores`` and ``n_examples``. `label_records` has all scores and examples.
        """
        self._store.labels.refresh()
        lights = self._store.labels.lights(*self._first_labels())
        best = {label.key for label in best_labels(light.label for light in lights).values()}
        rows = []
        for light in lights:
            label, score = light.label, light.label.score
            rows.append(
                {
                    "feature": label.feature,
                    "label": label.label,
                    "best": label.key in best,
                    "source": label.source,
                    "brief_description": label.brief_description,
                    "detailed_explanation": label.detailed_explanation,
                    "model": label.model,
                    "prompt_version": label.prompt_version,
                    "seed": label.seed,
                    "origin": label.origin,
                    "created": label.created,
                    "score_method": "" if score is None else score.method,
                    "score": None if score is None else score.value,
                    "low": None if score is None else score.low,
                    "high": None if score is None else score.high,
                    "n": None if score is None else score.n,
                    "n_scores": len(label.scores),
                    "n_examples": light.n_examples,
                }
            )
        table = pd.DataFrame(rows, columns=list(_DTYPES))
        return table.astype(_DTYPES)

    def add_labels(
        self,
        labels: Mapping[int, str] | Iterable[FeatureLabel] | FeatureLabel,
        source: str = "given",
    ) -> LabelsAdded:
        """Add labels to the store. They are on disk when this returns, and nothing is replaced.

        Any number of processes may add labels at once. A record that is there already, with other
        scores, gets the new scores too.

        Parameters
        ----------
        labels
            Labels by feature, or a record, or several.
        source
            Where labels by feature are from; see `FeatureLabel`.

        Returns
        -------
        LabelsAdded
            How many were written, as an integer that says when it is printed what became of all of
            them: ``new``, ``scored``, ``again``, ``same``, and which of them are ``shown``.

        Raises
        ------
        IndexError
            If the SAE has no such feature. Nothing is added then.
        TypeError, ValueError
            If something is no label.
        """
        records = [*_records(labels, source)]
        self._check_labels(records)
        return self._add(records)

    def _add(self, records: Sequence[FeatureLabel]) -> LabelsAdded:
        labels, first = self._store.labels, self._first_labels()
        features = {record.feature for record in records}
        before = labels.best(features, *first)
        added = labels.add(records)
        shown = Shown.of(records, before, labels.best(features, *first))
        return LabelsAdded(added.new, added.scored, added.again, added.same, shown)

    def _check_labels(self, records: Sequence[FeatureLabel], where: str = "") -> None:
        width = self.d_sae
        if width is None:
            return
        for record in records:
            if record.feature >= width:
                raise IndexError(
                    f"{where}feature {record.feature} is not among the {width} features of the SAE"
                )

    def export_labels(self, path: str | os.PathLike[str], *, best: bool = False) -> int:
        """Write labels to a file, which `import_labels` reads.

        Parameters
        ----------
        path
            Ends in ``.json`` or ``.csv``. A file that is there is replaced.
        best
            Only the label of each feature that `feature_labels` returns.

        Returns
        -------
        int
            How many labels were written.

        Raises
        ------
        ValueError
            If the name ends in something else.
        """
        from interp_embed.exchange.label_files import check_writable, write_labels

        target = expanded(path)
        check_writable(target)
        records = self.label_records()
        if best:
            records = list(best_labels(records).values())
        write_labels(target, records)
        return len(records)

    def import_labels(
        self,
        path: str | os.PathLike[str],
        *,
        source: str | None = None,
        only: str | None = None,
    ) -> LabelsAdded:
        """Add the labels of a file, or of several.

        Parameters
        ----------
        path
            A file, a folder of files, a pattern or a URL, also with gzip: JSON or CSV of
            `export_labels`, whose examples are numbers of documents and left out where this store
            has too few; a table with the columns ``feature`` and ``label``; a JSON object of
            labels by feature; or the explanations that Neuronpedia exports (JSON Lines or JSON).
        source
            Where they are from, in place of what the file says (``"import"`` where it says nothing).
            ``"given"`` puts them before all others.
        only
            Of a file with the explanations of several SAEs, those of this one: ``"model/layer"`` as
            Neuronpedia names them, such as ``"gpt2-small/8-res-jb"``.

        Returns
        -------
        LabelsAdded
            As for `add_labels`. Rows without a label are left out.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If a file has no labels, or something else in their place; it names the file and the line.
        IndexError
            If the SAE has no such feature: the labels are of another one. Nothing is added then.
        """
        from interp_embed.exchange.label_files import read_labels

        records = read_labels(expanded(path), source=source, only=only)
        self._check_labels(records, f"{path}: ")
        held = self._store.n_documents
        if any(example.document >= held for record in records for example in record.examples):
            warnings.warn(
                f"{path}: its labels were made from documents of another store, as this one has "
                f"{held}. They are added without their examples",
                stacklevel=2,
            )
            records = [replace(record, examples=()) for record in records]
        return self._add(records)

    def label_features_from_tokens(
        self,
        features: Sequence[int] | None = None,
        *,
        k: int = 20,
        words: int = 3,
        commit: bool = True,
        memory: int | str | None = None,
    ) -> NamedFeatures:
        """Name features by the words that they prefer, without a language model.

        Each feature is named after the words on which it is active in its strongest documents, or
        after the word that these follow; see `interp_embed.analysis.lexical_names`. The same documents
        give the same names. Reads the document level once, then the documents in which one of the
        features is strongest, and the texts of up to 2,048 documents to know which words are usual;
        memory does not grow with the corpus.

        Such a name shows only where a feature has no better label: all others come before it, those
        that the SAE came with too, unless they were scored and are not better than guessing. What is
        returned says how many show.

        Parameters
        ----------
        features
            Which; by default all that are active somewhere.
        k
            Documents a feature, of different texts.
        words
            Words a label at most.
        commit
            Whether to add the labels to the store.
        memory
            Bytes that the pass over the documents may use, or a size such as ``"2G"``.

        Returns
        -------
        NamedFeatures
            A list of `FeatureLabel` with the source ``"tokens"``, in order of features. A feature
            that is nowhere active has none. Printed, it says how many of them show.

        Raises
        ------
        IndexError
            If the SAE has no such feature.
        ValueError
            If nothing was encoded yet.
        OSError
            If they are to be added and nothing can be written to the store; before any work.
        """
        check_positive(k=k, words=words)
        from interp_embed.analysis.lexical import WordsOfFeatures, strongest_documents

        candidates = _CANDIDATES * k
        width = self.d_sae or feature_count(self._store)
        wanted = _mask(features, width)
        if commit:
            self._store.labels.check_writable()
        with memory_budget(memory):
            strongest = strongest_documents(self.iter_latents("max"), width, candidates).of(wanted)
        found: list[FeatureLabel] = []
        usual = self._usual_texts() if len(strongest.document) else []
        chosen = np.flatnonzero(wanted)
        for begin in range(0, len(chosen), step := max(1, _PAIRS // candidates)):
            part = np.zeros(width, np.bool_)
            part[chosen[begin : begin + step]] = True
            counted = WordsOfFeatures(width)
            counted.add_usual(usual)
            for chunk, texts, pairs in self._token_blocks(strongest.of(part)):
                counted.add(chunk, texts, pairs)
            found += counted.labels(k, words)
        if commit:
            added = self._add(found)
            assert added.shown is not None
            return NamedFeatures(found, added, added.shown)
        labels, first = self._store.labels, self._first_labels()
        named = [label.feature for label in found]
        beside = labels.best(named, *first, beside=found)
        return NamedFeatures(found, None, Shown.of(found, labels.best(named, *first), beside))

    def _usual_texts(self) -> list[str]:
        """Return the beginnings of some documents, evenly spread: what is usual in this dataset."""
        count = min(len(self), _USUAL_DOCUMENTS)
        some = np.linspace(0, len(self) - 1, count).astype(np.int64)
        texts = self._frame(some, [self.field])[self.field].tolist()
        return [text[:_USUAL_CHARACTERS] for text in texts if isinstance(text, str)]

    def _token_blocks(self, strongest: Strongest) -> Iterator[tuple[Chunk, list[str], Strongest]]:
        """Yield the documents that are named, some at a time, with their texts."""
        from interp_embed.analysis.lexical import Strongest

        positions = np.unique(strongest.document)
        for begin in range(0, len(positions), _READ_DOCUMENTS):
            some = positions[begin : begin + _READ_DOCUMENTS]
            chunk = self._store.chunk(self._documents[some])
            texts = self._frame(some, [self.field])[self.field].tolist()
            low, high = np.searchsorted(strongest.document, [some[0], some[-1] + 1])
            at = np.searchsorted(some, strongest.document[low:high])
            yield chunk, texts, Strongest(at, strongest.feature[low:high])


def _mask(features: Sequence[int] | None, width: int) -> NDArray[np.bool_]:
    mask = np.full(width, features is None)
    if features is not None:
        columns = np.asarray(features)
        if columns.ndim != 1 or (columns.dtype.kind not in "iu" and len(columns)):
            raise TypeError(f"features must be a list of integers, got {features!r:.80}")
        columns = columns.astype(np.int64)
        if (bad := columns[(columns < 0) | (columns >= width)]).size:
            raise IndexError(f"feature {bad[0]} is not among the {width} features of the SAE")
        mask[columns] = True
    return mask


def _records(
    labels: Mapping[int, str] | Iterable[FeatureLabel] | FeatureLabel, source: str
) -> Iterator[FeatureLabel]:
    if hasattr(labels, "items"):
        for feature, label in labels.items():
            # A number as text, as keys of JSON are; what else is no integer is refused.
            number = int(feature) if isinstance(feature, str) else feature
            yield FeatureLabel(number, label, source=source)
        return
    if isinstance(labels, FeatureLabel):
        yield labels
        return
    for record in labels:
        if not isinstance(record, FeatureLabel):
            raise TypeError(
                f"labels must be a dictionary of labels by feature, or FeatureLabel objects; got "
                f"{record!r:.80}"
            )
        yield record


_DTYPES: dict[str, Any] = {
    "feature": "int64", "label": object, "best": bool, "source": object,
    "brief_description": object, "detailed_explanation": object, "model": object,
    "prompt_version": object, "seed": "Int64", "origin": object, "created": object,
    "score_method": object, "score": "float64", "low": "float64", "high": "float64",
    "n": "Int64", "n_scores": "int64", "n_examples": "int64",
}  # fmt: skip
