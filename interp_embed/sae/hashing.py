"""Hashes of everything that determines activations: weights, configurations, tokenizers, files."""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    import torch

__all__ = [
    "hash_config",
    "hash_file",
    "hash_files",
    "hash_json",
    "hash_tensors",
    "hash_tokenizer",
]

# Entries of a model's configuration that say where it is from, not what it computes.
_PROVENANCE = frozenset(
    ("transformers_version", "dtype", "torch_dtype", "architectures", "quantization_config")
)
_PIECE = 2**24


def hash_json(value: object) -> str:
    """Return the sha256 of a value's canonical JSON."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, patterns: Iterable[str]) -> str:
    """Return the sha256 of the names and bytes of a folder's files that match a pattern."""
    files = {path.name: path for pattern in patterns for path in folder.glob(pattern)}
    return hash_json({name: hash_file(path) for name, path in files.items() if path.is_file()})


def hash_tensors(tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]]) -> str:
    """Return the sha256 of named tensors: names, dtypes, shapes and every byte."""
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(dict(tensors).items()):
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        flat = tensor.detach().reshape(-1)
        for piece in torch.split(flat, _PIECE):
            data = piece.contiguous().cpu().view(torch.uint8)
            digest.update(data.numpy().tobytes())
    return digest.hexdigest()


def hash_config(config: Any) -> str:
    """Return the sha256 of a transformers configuration, except where it was loaded from.

    Only values that differ from the family's defaults count, so that a default added in a later
    version of transformers does not change the hash.
    """
    entries = {
        key: value
        for key, value in config.to_diff_dict().items()
        if key not in _PROVENANCE and not key.startswith("_")
    }
    return hash_json(entries)


def hash_tokenizer(tokenizer: Any) -> str:
    """Return the sha256 of everything that determines how a tokenizer splits text.

    For a fast tokenizer this is its serialised form, without truncation and padding, which are set
    per call. For others it is the vocabulary and the settings.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return hash_json([type(tokenizer).__name__, tokenizer.get_vocab(), tokenizer.init_kwargs])
    entries = json.loads(backend.to_str())
    entries["truncation"] = entries["padding"] = None
    return hash_json(entries)
