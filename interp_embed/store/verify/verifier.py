"""Reading every byte of a store and saying what is wrong with it.

Shares no code with what writes or reads the format: it knows the format's documentation, plain Zarr
and numpy. A mistake in the writer that the reader makes too is found here.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from interp_embed.errors import NotAStoreError, UnsupportedFormatError
from interp_embed.store.storage import open_storage
from interp_embed.store.verify.check_arrays import check_chunk
from interp_embed.store.verify.check_documents import PlannedBlock, check_columns, check_documents
from interp_embed.store.verify.check_folders import GROUP, Folders, group_document
from interp_embed.store.verify.check_index import check_indexes
from interp_embed.store.verify.check_labels import check_labels
from interp_embed.store.verify.check_objects import Problem

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from interp_embed.store.storage import Storage

__all__ = ["Problem", "Verifier", "verify"]

_VERSION = 1
_STATISTICS = (
    "n_tokens", "n_special", "nnz", "pooled_nnz", "n_failed", "n_truncated", "has_negative",
)  # fmt: skip


def verify(location: str | os.PathLike[str] | Storage, *, progress: bool = False) -> list[Problem]:
    """Read every byte of a store and check everything that is known about it.

    Sizes and SHA-256 of all objects, the checksums of the JSON documents, and then, decoded by plain
    Zarr, what the format promises of the arrays: shapes, pointers, ascending features, finite and
    nonzero activations, spans, statuses, and a document level that equals one computed anew.

    Parameters
    ----------
    location
        A path, a URL, or a `Storage`. Nobody may be writing to it meanwhile.
    progress
        Whether to show a progress bar.

    Returns
    -------
    list of Problem
        Empty if all is well. Damage does not end the run; what depends on a damaged object is not
        checked further. Holds one chunk in memory at a time.

    Raises
    ------
    NotAStoreError
        If there is nothing at this place.
    UnsupportedFormatError
        If a newer release wrote the store.
    """
    return Verifier(open_storage(location)).run(progress=progress)


class Verifier(Folders):
    """One run over a store."""

    def __init__(self, storage: Storage) -> None:
        super().__init__(storage)
        self.attributes: dict[str, Any] | None = None
        self.plan: dict[str, Any] | None = None
        self.commits: dict[str, dict[str, Any]] = {}

    def run(self, *, progress: bool) -> list[Problem]:
        """Check everything there is."""
        self.present = dict(self.storage.list())
        for key in self.present:
            self.in_folder.setdefault("/".join(key.split("/")[:2]), []).append(key)
        if not self.present:
            raise NotAStoreError(f"there is no store at {self.storage.url}: nothing is there")
        self._root()
        self._plan()
        self._read_commits()
        self._binding()
        self.guarded("labels", lambda: check_labels(self, (self.attributes or {}).get("d_sae")))
        self._manifest()
        if not (self.attributes or self.plan or self.commits):
            return self.problems  # nothing says what else there should be
        for parent in ("chunks", "documents"):
            self.exact(f"{parent}/zarr.json", group_document({}))
        blocks = self._named_blocks()
        commits = [(key, c) for key, c in self.commits.items() if _is_folder(c.get("folder"))]
        with tqdm(
            total=len(blocks) + len(commits), desc="Verifying", unit="folder", disable=not progress
        ) as bar:
            for block in blocks:
                self.guarded(block.folder["key"], lambda b=block: self._block(b))  # type: ignore[misc]
                bar.update()
            for key, commit in commits:
                self.guarded(key, lambda k=key, c=commit: self._commit(k, c))  # type: ignore[misc]
                bar.update()
        self.guarded("index", lambda: check_indexes(self, self.ranked(), self.winners()))
        self._coverage()
        self._unexpected()
        return self.problems

    def _known_version(self, key: str, document: dict[str, Any]) -> None:
        found = document.get("format_version")
        if isinstance(found, int) and found > _VERSION:
            raise UnsupportedFormatError(
                f"{self.storage.url} has store format {found}; this release of interp_embed "
                f"verifies up to {_VERSION}: upgrade interp_embed"
            )
        if found != _VERSION:
            self.error(key, f"has no known format version: {found!r}")

    def _root(self) -> None:
        data = self.get("zarr.json")
        document = None if data is None else self.json_object("zarr.json", data)
        if document is None:
            return
        attributes = document.pop("attributes", None)
        if document != GROUP or not isinstance(attributes, dict):
            self.error("zarr.json", "is not the document of a Zarr group")
        if isinstance(attributes, dict):
            self.attributes = self.open_seal("zarr.json", attributes)
        if self.attributes is not None:
            self._known_version("zarr.json", self.attributes)
            if self.attributes.get("dtype") not in {"float32", "float16"}:
                self.error("zarr.json", f"has dtype {self.attributes.get('dtype')!r}")

    def _plan(self) -> None:
        self.plan = self.sealed("plan.json")
        if self.plan is None:
            return
        self._known_version("plan.json", self.plan)
        self._check_hashes("plan.json", self.plan["blocks"])
        number = 1
        while (key := f"plan-{number:06d}.json") in self.present:
            added = self.sealed(key)
            if added is None:
                return
            self._known_version(key, added)
            if added["documents_per_chunk"] != self.plan["documents_per_chunk"]:
                self.error(key, "has other documents_per_chunk than plan.json")
            before = self.plan["blocks"]
            if (
                added["columns"] != self.plan["columns"]
            ):  # what blocks of before do not say of theirs
                own = self.plan["columns"]
                before = [
                    [
                        *block[:3],
                        {
                            **block[3],
                            "columns": own if block[3]["columns"] is None else block[3]["columns"],
                        },
                    ]
                    for block in before
                ]
            self.plan = {**added, "blocks": [*before, *added["blocks"]]}
            self._check_hashes(key, self.plan["blocks"])
            number += 1

    def _check_hashes(self, key: str, blocks: list[Any]) -> None:
        stop = blocks[-1][1] if blocks else 0
        if stop != (self.plan or {}).get("n_documents"):
            self.error(key, f"its blocks end at document {stop}")
        for name in ("text", "columns"):
            hashes = json.dumps([b[3]["hashes"].get(name) for b in blocks], separators=(",", ":"))
            if hashlib.sha256(hashes.encode()).hexdigest() != (self.plan or {})["hashes"].get(name):
                self.error(key, f"its hash of {name} is not that of its blocks")

    def _read_commits(self) -> None:
        for key in sorted(k for k in self.present if k.startswith("commits/")):
            if _is_temporary(key) or not key.endswith(".json"):
                continue
            commit = self.sealed(key)
            if commit is None:
                continue
            self.commits[key] = commit
            if key != _commit_key(commit):
                self.error(key, f"holds the commit that belongs in {_commit_key(commit)}")
            if not _is_folder(commit.get("folder")):
                self.error(key, "names no folder")

    def _binding(self) -> None:
        if "binding.json" in self.present and (binding := self.sealed("binding.json")):
            self.attributes = {**(self.attributes or {}), **binding}
        encoders = {c.get("encoder") for c in self.commits.values() if c.get("nnz")}
        if len(encoders) > 1:
            self.error(
                "commits", "were made under different settings: their activations do not mix"
            )

    def _manifest(self) -> None:
        if "manifest.json" not in self.present:
            return
        document = self.sealed("manifest.json")
        if document is None or self.plan is None:
            return
        live = []
        for key in self._live():
            folder = {k: v for k, v in self.commits[key]["folder"].items() if k != "objects"}
            live.append({**self.commits[key], "folder": folder})
        stated = {_commit_key(c): c for c in document.get("commits", [])}
        for key in stated:
            if key not in self.commits and key not in self.expected:
                self.error(key, "is missing, though manifest.json names it")
        if list(stated.values()) != live and not any(
            k not in self.commits and k in self.expected for k in stated
        ):
            self.error("manifest.json", "differs from the commits")

    def _live(self) -> list[str]:
        """Return the commits that documents are read from, in order of their first document."""
        winner = self.winners()
        found, first = np.unique(winner, return_index=True)
        keys = sorted(self.commits, key=lambda k: _rank(self.commits[k]))
        order = np.argsort(first)
        return [keys[i] for i in found[order] if i >= 0]

    def ranked(self) -> list[dict[str, Any]]:
        """Return the commits, those of higher rank later."""
        return sorted(self.commits.values(), key=_rank)

    def winners(self) -> NDArray[np.int32]:
        """Return the place in `ranked` of the commit that each document is read from."""
        winner = np.full(int((self.plan or {}).get("n_documents", 0)), -1, np.int32)
        for number, commit in enumerate(self.ranked()):
            winner[commit["start"] : commit["stop"]] = number
        return winner

    def _named_blocks(self) -> list[PlannedBlock]:
        """Return the blocks that name a folder, after checking what the plan says of them."""
        found: list[PlannedBlock] = []
        at = 0
        for start, stop, folder, more in (self.plan or {}).get("blocks", []):
            if start != at or stop < start:
                self.error("plan.json", f"its blocks do not follow each other at document {start}")
            at = stop
            if not _is_folder(folder):
                self.error("plan.json", f"names no folder for documents {start}:{stop}")
            found.append(PlannedBlock(start, stop, folder, more["columns"], more["hashes"]))
        if self.plan is not None:
            for where, what in check_columns(self.plan["columns"], found):
                self.error("plan.json", f"{what}{where}")
        return [block for block in found if _is_folder(block.folder)]

    def _block(self, block: PlannedBlock) -> None:
        folder = block.folder
        arrays, _ = self.folder("plan.json", folder)
        columns = (self.plan or {})["columns"] if block.columns is None else block.columns
        for name, what in check_documents(arrays, columns, block, set(folder["arrays"])):
            self.error(f"{folder['key']}/{name}".rstrip("/"), what)

    def _commit(self, key: str, commit: dict[str, Any]) -> None:
        folder = commit["folder"]
        arrays, attributes = self.folder(key, folder)
        stated = {name: commit[name] for name in ("d_sae", "start", "stop", *_STATISTICS)}
        shift = commit.get("shift", 0)
        stated |= {name: commit[name] - shift for name in ("start", "stop")}
        if not isinstance(shift, int) or not 0 <= shift <= commit["start"]:
            self.error(key, f"has shift {shift!r}, for documents from {commit['start']} on")
        if attributes and attributes != stated:
            odd = next(n for n in {**stated, **attributes} if attributes.get(n) != stated.get(n))
            self.error(f"{folder['key']}/zarr.json", f"its {odd} is not what {key} says")
        if self.attributes is not None:
            width = self.attributes.get("d_sae")
            # A chunk in which nothing was encoded may not know the number of features.
            if commit["d_sae"] != width and (commit["d_sae"] or commit["n_tokens"]):
                self.error(key, f"has {commit['d_sae']} features, zarr.json says {width}")
        total = (self.plan or {}).get("n_documents", commit["stop"])
        if not 0 <= commit["start"] < commit["stop"] <= total:
            self.error(key, f"holds documents {commit['start']}:{commit['stop']} of {total}")
        dtype = (self.attributes or {}).get("dtype")
        checked = check_chunk(arrays, commit, dtype, set(folder["arrays"]))
        for name, what in checked:
            self.error(f"{folder['key']}/{name}", what)

    # The store as a whole

    def _coverage(self) -> None:
        if self.plan is None:
            return
        missing = self.winners() < 0
        if missing.any():
            first = int(np.argmax(missing))
            self.note(
                "commits",
                f"{int(missing.sum())} of {len(missing)} documents are not encoded yet, "
                f"document {first} for one",
            )
        elif "manifest.json" not in self.present and len(missing):
            self.note("manifest.json", "is not there: the store opens slower without it")

    def _unexpected(self) -> None:
        folders: dict[str, int] = {}
        for key in sorted(set(self.present) - self.expected):
            parts = key.split("/")
            if _is_temporary(key):
                self.note(key, "is a temporary object that a killed process left")
            elif parts[0] == "planning":
                self.note(key, "is a record that a killed process left while it wrote documents")
            elif key == "saving.json":
                self.note(key, "is what a save left that was killed when it was done")
            elif key == "writer.json":
                self.note(
                    key, "says that a process is writing to the store, or was killed doing so"
                )
            elif parts[0] in {"chunks", "documents", "index"} and len(parts) > 2:
                folder = f"{parts[0]}/{parts[1]}"
                folders[folder] = folders.get(folder, 0) + 1
            else:
                self.note(key, "is no part of the format")
        for folder, count in folders.items():
            self.note(folder, f"is a folder of {count} objects that nothing names")


def _is_temporary(key: str) -> bool:
    return key.rsplit("/", 1)[-1].startswith(".tmp-")


def _is_folder(value: Any) -> bool:
    return isinstance(value, dict) and {"key", "arrays", "objects"} <= set(value)


def _commit_key(commit: Mapping[str, Any]) -> str:
    start, stop, generation = (int(commit.get(k, -1)) for k in ("start", "stop", "generation"))
    return f"commits/{start:012d}-{stop:012d}-{generation:06d}.json"


def _rank(commit: Mapping[str, Any]) -> tuple[int, int, str]:
    return commit["generation"], commit["start"] - commit["stop"], commit["folder"]["key"]
