"""The progress of a run, for people and for machines."""

from __future__ import annotations

import json
import sys
import time
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tqdm.auto import tqdm

from interp_embed.core.progress import logged_worker

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Counts", "Monitor"]

_SECONDS_A_LINE = 2.0


@dataclass(frozen=True, slots=True)
class Counts:
    """Committed documents and their contents.

    Attributes
    ----------
    encoded, failed : int
        Documents.
    n_tokens, nnz : int
        Of the documents encoded.
    """

    encoded: int = 0
    failed: int = 0
    n_tokens: int = 0
    nnz: int = 0

    def __add__(self, other: Counts) -> Counts:
        mine, theirs = asdict(self), asdict(other)
        return Counts(**{name: mine[name] + theirs[name] for name in mine})


class Monitor:
    """Counts committed documents and shows the progress.

    Parameters
    ----------
    total
        Number of documents to encode; None if it is not known.
    log
        ``"bar"`` for a progress bar, ``"json"`` for a line of JSON on stderr every few seconds and at
        the end, ``"none"`` for neither.
    """

    def __init__(self, total: int | None, log: str) -> None:
        self.counts = Counts()
        self._total = total
        self._json = log == "json"
        self._worker = logged_worker()
        self._begun = time.monotonic()
        self._busy = 0.0
        self._reported: float | None = None
        name = "Encoding" if self._worker is None else f"Encoding {self._worker}"
        self._bar = tqdm(total=total, desc=name, unit="doc", disable=log != "bar")

    @contextmanager
    def device(self) -> Iterator[None]:
        """Count the time inside as working time of the device."""
        begun = time.monotonic()
        try:
            yield
        finally:
            self._busy += time.monotonic() - begun

    @property
    def seconds(self) -> float:
        """Seconds since the run began."""
        return time.monotonic() - self._begun

    @property
    def device_share(self) -> float:
        """Share of the time in which the device did not wait for texts or for the store."""
        return self._busy / max(self.seconds, 1e-9)

    def committed(self, counts: Counts) -> None:
        """Add documents that were committed."""
        self.counts += counts
        done = counts.encoded + counts.failed
        now = self.facts()
        per_token = now["nnz_per_token"]
        self._bar.set_postfix_str(
            f"{self.counts.n_tokens:,} tokens, {now['tokens_per_s']:,.0f}/s, "
            f"{0 if per_token is None else per_token:.1f} nonzeros each, "
            f"device {now['device_share']:.0%}, {self.counts.failed} failed",
            refresh=False,
        )
        self._bar.update(done)
        if self._reported is None or time.monotonic() - self._reported >= _SECONDS_A_LINE:
            self._report(now)

    def facts(self) -> dict[str, Any]:
        """Return the state of the run, as values for JSON."""
        counts, seconds = self.counts, max(self.seconds, 1e-9)
        documents = counts.encoded + counts.failed
        eta = None
        if self._total is not None and documents:
            eta = round(seconds * max(self._total - documents, 0) / documents, 1)
        return {
            "documents": documents,
            "total": self._total,
            "failed": counts.failed,
            "tokens": counts.n_tokens,
            "tokens_per_s": round(counts.n_tokens / seconds, 1),
            "nnz_per_token": round(counts.nnz / counts.n_tokens, 2) if counts.n_tokens else None,
            "device_share": round(self.device_share, 4),
            "elapsed_s": round(seconds, 1),
            "eta_s": eta,
        }

    def _report(self, facts: dict[str, Any]) -> None:
        if self._json:
            self._reported = time.monotonic()
            of = {} if self._worker is None else {"worker": self._worker}
            print(json.dumps({**of, **facts}), file=sys.stderr, flush=True)

    def close(self) -> None:
        """Show the last state."""
        self._report(self.facts())
        self._bar.close()
