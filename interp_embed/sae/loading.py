"""Finding an SAE again from what was recorded about it.

Nothing is loaded here but the class: the SAE that comes back has yet to `load` its models.
"""

from __future__ import annotations

import importlib
import sys
from typing import TYPE_CHECKING, Any

from interp_embed.sae.base import BaseSAE, class_path
from interp_embed.sae.kinds import SAEType
from interp_embed.sae.local import LocalSAE

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["load_sae_from_metadata", "sae_record"]


def sae_record(sae: BaseSAE) -> dict[str, Any]:
    """Return what `load_sae_from_metadata` needs to find the SAE again, as values for JSON."""
    return {**sae.metadata(), "sae_class": class_path(type(sae))}


def load_sae_from_metadata(metadata: Mapping[str, Any]) -> BaseSAE:
    """Build the SAE that was recorded, without loading its models.

    Parameters
    ----------
    metadata : mapping
        An SAE's `metadata`, with the import path of its class under ``sae_class`` (or ``class``,
        as in a fingerprint), unless ``sae_type`` says what it is.

    Raises
    ------
    ValueError
        If the class cannot be found, is not a subclass of `BaseSAE`, or does not take what was
        recorded. What was encoded can be read all the same.
    """
    settings = {k: v for k, v in metadata.items() if k not in ("sae_type", "sae_class", "class")}
    path = metadata.get("sae_class", metadata.get("class"))
    kind = metadata.get("sae_type")
    if path is not None:
        cls = _import_class(str(path))
    elif kind == SAEType.LOCAL:
        cls = LocalSAE
    elif kind is None:
        raise ValueError(
            "the metadata name neither 'sae_type' nor 'sae_class', so the SAE cannot be rebuilt; "
            "pass it explicitly to encode more documents"
        )
    else:
        raise ValueError(
            f"SAEs of type {str(kind)!r} cannot be rebuilt by this version of interp_embed; "
            f"expected {SAEType.LOCAL.value!r} or the path of a class under 'sae_class'"
        )
    try:
        return cls.from_metadata(settings)
    except TypeError as error:
        raise ValueError(
            f"{class_path(cls)} does not take the recorded settings: {error}"
        ) from error


def _import_class(path: str) -> type[BaseSAE]:
    module_name, _, name = path.partition(":")
    try:
        module = sys.modules.get(module_name) or importlib.import_module(module_name)
        value: Any = module
        for part in name.split("."):
            value = getattr(value, part)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"the class of the SAE, {path!r}, cannot be imported ({error}); import the module that "
            "defines it, or pass an SAE explicitly"
        ) from error
    if not (isinstance(value, type) and issubclass(value, BaseSAE)):
        raise ValueError(f"{path!r} is not a subclass of interp_embed.sae.BaseSAE")
    return value
