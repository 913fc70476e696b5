"""What tells a local SAE and its language model from others, asked for and loaded."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed.sae.kinds import plain_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["hash_loaded", "recordable", "unknown_sae", "what_was_asked"]

# Files of a folder that determine activations, as far as there are any.
_SAE_FILES = ("cfg.json", "sae_weights.safetensors")
_MODEL_FILES = ("config.json", "*.safetensors", "pytorch_model*.bin")
_TOKENIZER_FILES = ("tokenizer*", "vocab*", "merges.txt", "*.model", "special_tokens_map.json",
                    "added_tokens.json", "chat_template*")  # fmt: skip


def recordable(value: Any) -> str | None:
    """Return what names a model or tokenizer; None for one that is an object."""
    return str(value) if isinstance(value, str | Path) else None


def what_was_asked(
    folder: Path | None, model: Any, tokenizer: Any, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return what was asked for, as values for JSON: hashes of folders, names, and settings.

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
    """Return why SAELens has no such SAE; None if it has one, or may find one on the hub."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    known = get_pretrained_saes_directory()
    if release in known:
        if sae_id in known[release].saes_map:
            return None
        near = ", ".join(get_close_matches(sae_id, known[release].saes_map)) or "none like it"
        return f"sae_id={sae_id!r} is not found in release {release}, which has {near}"
    folders = (Path(sae_id) / release, Path(sae_id))
    if sae_id in known or any((f / "cfg.json").is_file() for f in folders):
        return f"there is no release {release!r}, but sae_id={sae_id!r} is one: the two are swapped"
    if "/" in release:
        return None
    return (
        f"release={release!r} is no release that SAELens knows, no folder with an SAE, and "
        "no repository on the hub; SAELens's table of pretrained SAEs lists the releases"
    )


def hash_loaded(sae: Any, tokenizer: Any, *, templated: bool) -> dict[str, Any]:
    """Return hashes of an SAE of SAELens and of the tokenizer, its chat template where it is used."""
    from interp_embed.sae.hashing import hash_json, hash_tensors, hash_tokenizer

    config = sae.cfg.to_dict()
    for key in ("device", "dtype", "metadata"):
        config.pop(key, None)
    template = getattr(tokenizer, "chat_template", None) if templated else None
    return {
        "sae_architecture": sae.cfg.architecture(),
        "sae_config": hash_json(config),
        "sae_sha256": hash_tensors(sae.state_dict()),
        "tokenizer_sha256": hash_tokenizer(tokenizer),
        "template_sha256": None if template is None else hash_json(template),
    }
