"""Feature labels that Neuronpedia has published, fetched once and kept in the cache.

Neuronpedia's exports are in a public bucket: ``v1/<model>/<source>/explanations/batch-<n>.jsonl.gz``
with one JSON object per line, of which ``index`` (the feature, as a string) and ``description`` are
read here. Anything unexpected raises `OSError`, which callers turn into a warning.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import re
import zlib
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from interp_embed.core.files import replacing
from interp_embed.sae.releases.embedded_release import cache_folder

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

__all__ = ["published_labels"]

BUCKET = "neuronpedia-datasets"
ENDPOINT = "https://s3.us-east-1.amazonaws.com"
_REGION = "us-east-1"
_BATCH = re.compile(r"batch-(\d+)\.jsonl\.gz$")
_CACHE_FORMAT = 1


def published_labels(source: str, d_sae: int | None = None) -> dict[int, str]:
    """Return labels of an SAE's features.

    Parameters
    ----------
    source : str
        Model and source at Neuronpedia, such as ``"llama3.1-8b-it/19-resid-post-gf"``.
    d_sae : int, optional
        Number of features. Labels of features beyond it are left out.

    Returns
    -------
    dict of int to str
        In the order of the features. If a feature has several explanations, the first one counts.

    Raises
    ------
    OSError
        If they are neither in the cache nor available, or are not in the expected form.
    """
    file = cache_folder() / "labels" / f"{source.replace('/', '_')}-v{_CACHE_FORMAT}.json"
    labels = _cached(file)
    if labels is None:
        labels = _fetch(source)
        _keep(file, labels)
    return {f: label for f, label in sorted(labels.items()) if d_sae is None or f < d_sae}


def _fetch(source: str) -> dict[int, str]:
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise OSError("HF_HUB_OFFLINE is set, and the labels were not fetched before")
    labels: dict[int, str] = {}
    for name, content in _batches(f"v1/{source}/explanations/"):
        try:
            # Not splitlines(): a string of JSON may hold separators that Unicode counts as its ends.
            lines = gzip.decompress(content).decode().split("\n")
            entries = [json.loads(line) for line in lines if line.strip()]
            found = [(int(e["index"]), e.get("description")) for e in entries]
        except (
            OSError, EOFError, zlib.error, ValueError, OverflowError, RecursionError, KeyError,
            TypeError, AttributeError,
        ) as error:  # fmt: skip
            raise OSError(
                f"{ENDPOINT}/{BUCKET}/{name} is not an export of explanations "
                f"({type(error).__name__}: {error})"
            ) from error
        for feature, description in found:
            if feature >= 0 and isinstance(description, str) and description.strip():
                labels.setdefault(feature, description.strip())
    if not labels:
        raise OSError(f"Neuronpedia has no labels for {source!r}")
    return labels


def _batches(prefix: str) -> Iterator[tuple[str, bytes]]:
    """Yield the files of an export, in the order of their numbers."""
    from obstore.exceptions import BaseError
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        # Nothing of what the environment says of the user's own stores.
        config={
            "endpoint": ENDPOINT,
            "region": _REGION,
            "skip_signature": True,
            "virtual_hosted_style_request": False,
        },
        client_options={
            "allow_http": ENDPOINT.startswith("http://"),
            "connect_timeout": timedelta(seconds=10),
            "timeout": timedelta(minutes=2),
        },
        # Nobody should wait long for names.
        retry_config={"max_retries": 2, "retry_timeout": timedelta(seconds=20)},
    )
    try:
        names = [str(entry["path"]) for page in store.list(prefix) for entry in page]
        numbered = {int(m[1]): name for name in names if (m := _BATCH.search(name))}
        for _, name in sorted(numbered.items()):
            yield name, bytes(store.get(name).bytes())
    except (BaseError, OSError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise OSError(f"{ENDPOINT}/{BUCKET} could not be read ({reason})") from error


def _cached(file: Path) -> dict[int, str] | None:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return {int(feature): str(label) for feature, label in found.items()}
    except (OSError, ValueError, AttributeError):  # not there, or half a file of a full disk
        return None


def _keep(file: Path, labels: dict[int, str]) -> None:
    """Put labels into the cache, where there is room for them."""
    # A read-only home, a full disk: fetched again next time.
    with contextlib.suppress(OSError), replacing(file) as cache:
        cache.write(json.dumps(labels).encode())
