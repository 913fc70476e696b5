"""What every measurement of the million-document benchmark is told, and the names of its files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from common import timed
from corpus import Corpus

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

_FEATURES_A_KIND = 20


@dataclass(frozen=True)
class Setting:
    """One corpus and where its files are.

    Parameters
    ----------
    n_documents
        Documents of the corpus.
    folder
        Where the stores and the peers' files are.
    repeat
        Runs of a measurement; the fastest counts.
    threads
        Of everything that can be told.
    number
        Which of several runs of a cold query this is.
    """

    n_documents: int
    folder: Path
    repeat: int = 2
    threads: int = 2
    number: int = 0

    @cached_property
    def corpus(self) -> Corpus:
        """Return the documents."""
        return Corpus(self.n_documents)

    @property
    def nnz(self) -> int:
        """Return the nonzeros of the corpus."""
        return int(self.corpus.nnz.sum())

    def path(self, name: str) -> Path:
        """Return a file of this corpus: ``path("store.zarr")``, say."""
        stem, ending = name.split(".")
        return self.folder / f"{stem}-{self.n_documents}.{ending}"

    @property
    def store(self) -> Path:
        """Return where the store is."""
        return self.path("store.zarr")

    @cached_property
    def most(self) -> float:
        """Return a threshold that more than 90 % of the nonzeros are above."""
        return self.corpus.threshold(0.92)

    @cached_property
    def few(self) -> float:
        """Return a threshold that 1 % of the nonzeros are above."""
        return self.corpus.threshold(0.01)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Return a tenth of the documents."""
        return np.random.default_rng(7).random(self.n_documents) < 0.1

    @cached_property
    def chosen(self) -> NDArray[np.int64]:
        """Return a thousand documents in random order."""
        count = min(1000, self.n_documents)
        return np.random.default_rng(8).choice(self.n_documents, count, replace=False)

    @cached_property
    def features(self) -> dict[str, list[int]]:
        """Return some features that are active in about 1 % and some in about 80 % of documents."""
        base = self.corpus.base
        token = np.repeat(np.arange(base.n_tokens), np.diff(base.token_ptr))
        document = np.repeat(np.arange(base.n_documents), np.diff(base.doc_ptr))[token]
        pairs = np.unique(document * base.d_sae + base.feature)
        share = np.bincount(pairs % base.d_sae, minlength=base.d_sae) / base.n_documents
        return {
            kind: np.argsort(np.abs(share - wanted), kind="stable")[:_FEATURES_A_KIND].tolist()
            for kind, wanted in (("rare", 0.01), ("common", 0.8))
        }

    def remembered(self, name: str, produce: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return the figures of something that a run made earlier and kept, or make it."""
        path = self.path(f"{name}.json")
        if path.exists():
            return {**json.loads(path.read_text()), "reused": True}
        found = produce()
        path.write_text(json.dumps(found))
        return found


def top_warm(
    setting: Setting, ask: Callable[[int], Any], values: Callable[[int], list[float]]
) -> dict[str, Any]:
    """Ask for the top 10 of rare and common features, all of them once before the clock runs.

    Parameters
    ----------
    setting
        Says which features.
    ask
        Is timed.
    values
        Returns the activations of the top 10, to compare with others' answers.
    """
    found: dict[str, Any] = {"values": {}}
    for kind, features in setting.features.items():
        for feature in features:
            ask(feature)
        times = [timed(ask, feature)[0] for feature in features]
        found[kind] = float(np.median(times))
        found[f"{kind} slowest"] = max(times)
        found["values"] |= {str(feature): values(feature) for feature in features[:3]}
    return found
