"""Real activations to measure with: the embedded SAE over the shipped texts, resampled to any size.

Encoding takes a minute, so the result is kept in the cache folder. Documents are made longer by
joining a few texts, because a sentence is shorter than most documents.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from interp_embed.core.chunk import Chunk, TokenTable
from interp_embed.data import load_demo
from interp_embed.sae import LocalSAE
from interp_embed.sae.releases.embedded_release import cache_folder

_TEXTS_PER_DOCUMENT = 4
_DOCUMENTS = 1200


def base_chunk() -> Chunk:
    """Return about 1,200 documents of 4 random texts each, encoded by the embedded SAE."""
    path = Path(cache_folder()) / f"benchmark-activations-{_DOCUMENTS}-{_TEXTS_PER_DOCUMENT}.npz"
    if not path.exists():
        _encode(path)
    with np.load(path) as found:
        arrays = dict(found)
    return Chunk(
        d_sae=int(arrays["d_sae"]),
        doc_id=arrays["doc_id"],
        status=arrays["status"],
        doc_ptr=arrays["doc_ptr"],
        token_ptr=arrays["token_ptr"],
        feature=arrays["feature"],
        activation=arrays["activation"],
        tokens=TokenTable(*(arrays[f"token_{name}"] for name in TokenTable.__slots__)),
        vocabulary={0: "<|endoftext|>"},
    )


def sentences() -> list[list[str]]:
    """Return the texts that each document of `base_chunk` is joined from."""
    pool = load_demo()["text"].tolist()
    generator = np.random.default_rng(0)
    return [
        [pool[i] for i in generator.choice(len(pool), _TEXTS_PER_DOCUMENT, replace=False)]
        for _ in range(_DOCUMENTS)
    ]


def texts() -> list[str]:
    """Return the texts of the documents of `base_chunk`."""
    return [" ".join(parts) for parts in sentences()]


def _encode(path: Path) -> None:
    sae = LocalSAE.embedded()
    sae.load()
    documents = texts()
    parts = [sae.encode_chunk(documents[i : i + 16]) for i in range(0, len(documents), 16)]
    chunk = Chunk.concatenate(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_suffix(".tmp.npz")
    np.savez(
        aside,
        d_sae=chunk.d_sae,
        doc_id=np.arange(chunk.n_documents),
        status=chunk.status,
        doc_ptr=chunk.doc_ptr,
        token_ptr=chunk.token_ptr,
        feature=chunk.feature,
        activation=chunk.activation,
        **{f"token_{name}": getattr(chunk.tokens, name) for name in TokenTable.__slots__},
    )
    aside.replace(path)


def resampled(nnz: int, seed: int = 0) -> Chunk:
    """Return documents drawn with replacement from `base_chunk` until they hold ``nnz`` nonzeros."""
    base = base_chunk()
    size = np.diff(base.token_ptr[base.doc_ptr])
    generator = np.random.default_rng(seed)
    drawn = generator.integers(0, base.n_documents, int(1.2 * nnz / size.mean()) + 1)
    drawn = drawn[: int(np.searchsorted(np.cumsum(size[drawn]), nnz)) + 1]
    return base.take(drawn).with_doc_id(np.arange(len(drawn)))
