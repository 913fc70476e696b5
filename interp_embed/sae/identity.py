"""The identity of a local SAE and its language model, as requested and as loaded."""

from __future__ import annotations

import contextlib
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed.sae.sae_types import plain_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

__all__ = [
    "close_to", "did_you_mean", "hash_loaded", "located", "published_at", "recordable", "unknown_sae",
    "what_was_asked",
]  # fmt: skip

# Files of a folder that determine activations, as far as there are any.
_SAE_FILES = ("cfg.json", "sae_weights.safetensors")
_MODEL_FILES = ("config.json", "*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json",
                    "added_tokens.json", "chat_template*")  # fmt: skip


def located(value: Any) -> Any:
    """Return a folder's path as an absolute path, and other values unchanged.

    A recorded path is looked up later from another folder. A name on the hub is not changed.
    """
    if not isinstance(value, str | Path):
        return value
    with contextlib.suppress(RuntimeError, OSError):  # a home of nobody, a name too long for a file
        path = Path(value).expanduser()
        if path.is_dir():
            return str(path.absolute())
    return value


def recordable(value: Any) -> str | None:
    """Return the name or path of a model or tokenizer; None for an object."""
    return str(value) if isinstance(value, str | Path) else None


def what_was_asked(
    folder: Path | None, model: Any, tokenizer: Any, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the requested values for JSON: hashes of folders, names, and settings.

    Parameters
    ----------
    folder
        Of the SAE, where it has one.
    model, tokenizer
        As they were given.
    settings
        What loading resolves, by name.
    """
    from interp_embed.sae.hashing import hash_files

    return {
        "sae": None if folder is None else f"folder:{hash_files(folder, _SAE_FILES)}",
        "model": _source(model, _MODEL_FILES),
        "tokenizer": _source(tokenizer, _TOKENIZER_FILES),
        **{name: plain_json(value) for name, value in settings.items()},
    }


def _source(value: Any, patterns: Sequence[str]) -> str | None:
    """Return what names a model or tokenizer: its name, its folder's hash, or that it is an object."""
    from interp_embed.sae.hashing import hash_files

    if value is None or not isinstance(value, str | Path):
        return None if value is None else "object"
    return f"folder:{hash_files(Path(value), patterns)}" if Path(value).is_dir() else str(value)


def unknown_sae(release: str, sae_id: str) -> str | None:
    """Return why SAELens has no such SAE; None if it has one or may find one on the hub."""
    known = _registry()
    if release in known:
        if sae_id in known[release].saes_map:
            return None
        names = list(known[release].saes_map)
        near = close_to(sae_id, names)
        return (
            f"sae_id={sae_id!r} is not found in release {release}, which has "
            f"{', '.join(near or names[:3])} and others{did_you_mean(near[:1])}"
        )
    folders = (Path(sae_id) / release, Path(sae_id))
    if sae_id in known or any((f / "cfg.json").is_file() for f in folders):
        return f"release={release!r} is not a release, but sae_id={sae_id!r} is one: swap the two"
    if "/" in release:
        return None
    return (
        f"release={release!r} is not a release that SAELens knows, not a folder with an SAE (seen "
        f"from {Path.cwd()}) and not a repository on the hub; SAELens's table of pretrained SAEs "
        f"lists the releases{did_you_mean(close_to(release, known))}"
    )


def published_at(release: str, sae_id: str) -> tuple[str, str]:
    """Return the repository of an SAE on the hub, and a pattern of its files there."""
    known = _registry()
    if release not in known:
        return release, f"{sae_id}*"
    entry = known[release]
    return str(entry.repo_id), f"{entry.saes_map.get(sae_id, sae_id)}*"


def _registry() -> Mapping[str, Any]:
    """Return the releases that SAELens knows, by name; from a file that comes with it."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    found: Mapping[str, Any] = get_pretrained_saes_directory()
    return found


def close_to(name: str, known: Iterable[str]) -> list[str]:
    """Return up to three known names that are similar to a name."""
    return get_close_matches(name, list(known), n=3)


def did_you_mean(near: Sequence[str]) -> str:
    """Return the end of a message about an unknown name; empty if no name is similar."""
    return f". Did you mean {' or '.join(map(repr, near))}?" if near else ""


def hash_loaded(
    sae: Any, tokenizer: Any, *, templated: bool, date: str | None = None
) -> dict[str, Any]:
    """Return hashes of an SAE of SAELens and of the tokenizer, its chat template where it is used.

    Parameters
    ----------
    sae, tokenizer
        Loaded.
    templated
        Whether documents are encoded in the chat template.
    date
        The date that the template is given, where it asks for one. The template's hash is that of
        both: stores were once made with the day of each run, which their fingerprints do not say.
    """
    from interp_embed.sae.hashing import hash_json, hash_tensors, hash_tokenizer

    config = sae.cfg.to_dict()
    for key in ("device", "dtype", "metadata"):
        config.pop(key, None)
    template = getattr(tokenizer, "chat_template", None) if templated else None
    dated = {} if date is None else {"template_date": date}
    return {
        "sae_architecture": sae.cfg.architecture(),
        "sae_config": hash_json(config),
        "sae_sha256": hash_tensors(sae.state_dict()),
        "tokenizer_sha256": hash_tokenizer(tokenizer),
        "template_sha256": None
        if template is None
        else hash_json(template if date is None else [template, date]),
        **dated,
    }
