"""`Dataset`: making, continuing, saving and opening the store behind a view of documents."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from interp_embed import exchange as saving
from interp_embed.core.checks import check_dtype
from interp_embed.core.memory import parse_size
from interp_embed.core.progress import show_progress
from interp_embed.inputs import as_documents, check_positive, check_rows, check_sae
from interp_embed.labelling import Labelling
from interp_embed.naming import Naming

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import DTypeLike

    from interp_embed.sae.base import BaseSAE
    from interp_embed.selection.row import DatasetRow

__all__ = ["Dataset"]


class _TemporaryFolder:
    """A folder that goes with the last view that uses it, and at the latest with the process."""

    def __init__(self) -> None:
        self.path = tempfile.mkdtemp(prefix="interp-embed-")
        weakref.finalize(self, _remove, self.path, os.getpid())


def _stored_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    try:
        return check_dtype(dtype)
    except TypeError:  # a name that numpy does not know
        raise ValueError(f"dtype must be float16 or float32, got {dtype!r}") from None


def _remove(path: str, owner: int) -> None:
    if os.getpid() == owner:  # a forked child ends before its parent does
        shutil.rmtree(path, ignore_errors=True)


class Dataset(Labelling, Naming):
    """Documents and their feature activations.

    The activations live in a store on disk; this object selects documents of it. Slicing, masking,
    sorting and filtering give new views and copy no activations.

    Parameters
    ----------
    data : DataFrame, list of dict, path, Arrow table, Hugging Face dataset, iterable of dict, ...
        The documents. A path or URL may be of a Parquet, CSV, TSV, JSON Lines or JSON file, of a
        folder of them, or a pattern; a list of paths is read in order. All but data frames and lists
        of dictionaries are read block by block and need not fit in memory.
    sae : BaseSAE
        Computes the activations.
    dataset_description : str
        For people; by default that of the store at ``save_path``, where there is one.
    rows : list of DatasetRow or None, optional
        Activations that are known already; None for documents that have none.
    field : str
        Column that holds the text.
    compute_activations : bool
        Encode the documents that have no activations yet. Where the store at ``save_path`` has some
        already, for the same documents, SAE and settings, only the rest is encoded.
    feature_labels : dict of int to str, optional
        Names of features; by default those that the SAE comes with.
    save_path : str or path, optional
        Where the store goes, a path or a URL. Without it the store is in a temporary folder that
        goes when the process ends.
    save_every_batch : int
        Batches between two commits: at most this much finished work is lost by a crash.
    batch_size : int
        Documents a batch.
    dtype : dtype
        Of the stored activations: float32 (exact) or float16 (half the size; a document with an
        activation beyond its range fails).

    Attributes
    ----------
    id : str
        Six characters that name this dataset.
    dataset_description, field, sae
        As given.

    Raises
    ------
    FileNotFoundError
        If a file is missing, or no file matches a pattern.
    ValueError
        If the documents have no column ``field``, or a file is damaged.
    FingerprintMismatchError
        If ``save_path`` holds a store of other documents, another SAE or other settings.
    StoreExistsError
        If ``save_path`` holds something that is no store.
    """

    def __init__(
        self,
        data: Any,
        sae: BaseSAE,
        dataset_description: str = "",
        rows: Sequence[DatasetRow | None] | None = None,
        field: str = "text",
        compute_activations: bool = True,
        feature_labels: Mapping[int, str] | None = None,
        save_path: str | os.PathLike[str] | None = None,
        save_every_batch: int = 5,
        batch_size: int = 8,
        *,
        dtype: DTypeLike = np.float32,
    ) -> None:
        documents = as_documents(data, field)
        check_sae(sae)
        check_positive(save_every_batch=save_every_batch, batch_size=batch_size)
        stored_dtype = _stored_dtype(dtype)
        if rows is not None:
            check_rows(rows, documents.frame(), field)
        folder = None
        if save_path is None:
            folder = _TemporaryFolder()
            save_path = folder.path
        needed = compute_activations and (rows is None or any(row is None for row in rows))
        was_loaded = sae.is_loaded()
        try:
            store = saving.plan_store(
                documents,
                save_path,
                sae,
                field=field,
                description=dataset_description,
                documents_per_chunk=int(save_every_batch) * int(batch_size),
                dtype=stored_dtype,
                feature_labels=feature_labels,
                load=needed,
            )
            self._bind(store, sae, np.arange(store.n_documents), {}, feature_labels, folder)
            if dataset_description:
                self.dataset_description = dataset_description
            self.id = store.attributes["id"]
            if rows is not None:
                saving.write_rows(store, sae, rows)
            if compute_activations:
                self._compute(int(batch_size), int(save_every_batch) * int(batch_size))
        finally:
            if sae.is_loaded() and not was_loaded:
                sae.destroy()

    def _compute(self, batch_size: int, documents_per_commit: int | None = None) -> None:
        from interp_embed.encode import encode_store

        if self.sae is None:
            if saving.is_done(self._store):
                return
            raise ValueError(self._cannot_encode())
        report = encode_store(
            self._store, self.sae, batch_size=batch_size, documents_per_commit=documents_per_commit
        )
        saving.keep_labels(self._store, self.sae, wrote=report.encoded > 0)

    def _cannot_encode(self, instead: str = "") -> str:
        reason = f": {self._no_sae.rstrip('.')}" if self._no_sae else ""
        return (
            f"the SAE that made {self.path} cannot be rebuilt from its metadata, so nothing can be "
            f"encoded{reason}. "
            + (instead or "Pass the data, the SAE and this save_path to Dataset(...) instead")
        )

    def append(self, data: Any, compute_activations: bool = True, batch_size: int = 8) -> None:
        """Add documents to the store, and encode them. This dataset has them afterwards.

        Cut off while the documents are written, the same call goes on. Once they are written they
        belong to the store, and ``load_from_file(path, resume=True)`` encodes the rest of them.

        Parameters
        ----------
        data
            The documents: whatever `Dataset` takes. Columns that only some documents have are missing
            in the others.
        compute_activations
            Whether to encode the documents now.
        batch_size
            Documents a batch.

        Raises
        ------
        ValueError
            If this is a part of the store, if documents of the store are not encoded yet, or if there
            is no SAE to encode with.
        FingerprintMismatchError
            If the SAE is not what the store was made with.
        """
        check_positive(batch_size=batch_size)
        saving.require_whole(self, "added to")
        if compute_activations and self.sae is None:
            raise ValueError(self._cannot_encode("Or set the dataset's sae to the SAE"))
        sae = self.sae
        was_loaded = sae is not None and sae.is_loaded()
        try:
            saving.append(self._store, data, sae, load=compute_activations)
            self._bind_documents(np.arange(self._store.n_documents))
            if compute_activations:
                self._compute(int(batch_size))
        finally:
            if sae is not None and sae.is_loaded() and not was_loaded:
                sae.destroy()

    # Disk

    def build_index(self, memory: int | str | None = None, *, rebuild: bool = False) -> None:
        """Index the whole store by feature, so that questions about a few features are quick.

        Finding a feature's documents then takes a few reads instead of a pass over the corpus. A
        store of some size gets an index when its encoding is complete; this is for one that was
        encoded in part, or lost its index. What is right already is kept.

        Parameters
        ----------
        memory
            Bytes that this may take beside what the process holds, or a size such as ``"4G"``;
            512 MiB by default.
        rebuild
            Delete the index that there is first: it may be damaged.

        Raises
        ------
        ValueError
            If nothing was encoded yet, or ``memory`` is no size.
        """
        from interp_embed.store.write.indexing import DEFAULT_MEMORY, build_index

        room = DEFAULT_MEMORY if memory is None else parse_size(memory)
        build_index(self._store, memory=room, rebuild=rebuild, progress=show_progress())

    def save_to_file(
        self, file_path: str | os.PathLike[str] | None = None, dtype: DTypeLike = np.float32
    ) -> None:
        """Save this view's documents and activations.

        Parameters
        ----------
        file_path
            Where; by default ``dataset_{id}.zarr``. A path that ends in ``.pkl`` or ``.pickle``
            gets the one-file pickle of the original library, for exchange; any other a store. A
            pickle keeps neither why documents failed nor which were truncated: read back, one that
            failed is not encoded yet, unless it has no text. A
            dataset that is there already is replaced; a process that has the replaced store open
            then fails to read from it, and has to open it again.
        dtype
            Of the saved activations, float32 or float16.

        Raises
        ------
        ValueError
            If ``dtype`` is neither float32 nor float16.
        OverflowError
            If an activation is beyond the range of ``dtype``.
        """
        path = Path(f"dataset_{self.id}.zarr") if file_path is None else file_path
        saving.save(self, path, _stored_dtype(dtype))

    @classmethod
    def load_from_file(
        cls,
        file_path: str | os.PathLike[str],
        resume: bool = False,
        batch_size: int = 8,
        device: str | Mapping[str, str] = saving.DEFAULT_DEVICE,
    ) -> Dataset:
        """Open a saved dataset. Neither a model nor a GPU is needed to read it.

        Parameters
        ----------
        file_path
            A store, or a pickle of the original library, told apart by their content.
        resume
            Encode the documents that have no activations yet, and try again those that failed. The
            module of an SAE class of your own is then imported if the store names it: pass it only
            for stores that you trust. For a pickle, import the class first.
        batch_size
            Documents a batch, when resuming.
        device
            For the SAE, when resuming. Where there is no GPU the run is on the CPU, with a warning
            if another GPU than the default was asked for.

        Raises
        ------
        NotAStoreError
            If there is neither.
        UnsafePickleError
            If a pickle holds anything but arrays, frames and plain values.
        """
        check_positive(batch_size=batch_size)
        loaded = saving.load(cls, file_path, import_modules=resume)
        if resume:
            saving.choose_device(loaded.sae, device)
            loaded._compute(batch_size)
        return loaded

    # Display

    def __repr__(self) -> str:
        if len(self) == 0:
            return "Dataset(<EMPTY>)"
        names = ", ".join(repr(name) for name in self.columns)
        shown = range(len(self)) if len(self) < 5 else [0, 1, len(self) - 2, len(self) - 1]
        lines = [f"    {i}: {self.rows[i]!r}" for i in shown]
        if len(self) >= 5:
            lines.insert(2, "    ...")
        body = "\n".join(lines)
        counts = ", ".join(
            [f"{len(self):,} documents", *self._status_counts(), f"{self.d_sae or '?'} features"]
        )
        return f"Dataset {self.id} ({counts})(\n  columns=[{names}]\n  rows=[\n{body}\n  ]\n)"

    def _repr_html_(self) -> str:
        from interp_embed.viz.html import dataset_html

        others = ", ".join(self._status_counts())
        summary = {
            "Documents": f"{len(self):,}" + (f" ({others})" if others else ""),
            "Tokens": f"{self.token_count:,}",
            "Features": f"{self.d_sae or 'unknown'}",
            "Store": self.path,
        }
        if self.dataset_description:
            summary = {"Description": self.dataset_description, **summary}
        return dataset_html(summary, self._frame(np.arange(min(5, len(self)))))
