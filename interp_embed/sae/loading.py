"""Rebuilding an SAE from what was recorded about it.

Only the class is loaded here. Call `load` on the SAE to load its models.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed.core.recorded_names import current_name
from interp_embed.sae.base import BaseSAE
from interp_embed.sae.hooked import HookedSAE
from interp_embed.sae.sae_types import SAEType, plain_json

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

__all__ = ["load_sae_from_metadata", "sae_record"]

# What `interp_embed.sae` calls them, so that only the one that is asked for is imported.
_CLASSES = {
    SAEType.LOCAL: "LocalSAE",
    SAEType.GOODFIRE: "GoodfireSAE",
    SAEType.GOODFIRE_API: "GoodfireApiSAE",
}


def sae_record(sae: BaseSAE) -> dict[str, Any]:
    """Return the values for JSON from which `load_sae_from_metadata` rebuilds the SAE."""
    found: dict[str, Any] = plain_json({**sae.metadata(), "sae_class": type(sae).recorded_as})
    return found


def load_sae_from_metadata(
    metadata: Mapping[str, Any],
    *,
    import_modules: bool = False,
    fingerprint: Mapping[str, Any] | None = None,
) -> BaseSAE:
    """Build the SAE that was recorded, without loading its models.

    Parameters
    ----------
    metadata : mapping
        An SAE's `metadata`, with `BaseSAE.recorded_as` of its class under ``sae_class`` (or
        ``class``, as in a fingerprint). Without one, as in a pickle of the original library, ``sae_type`` says
        what it is: a `SAEType`.
    import_modules : bool
        Import the module of the class if it is not imported yet. That runs the module's code, so use
        it only for metadata that you trust. Modules of this library are always imported.
    fingerprint : mapping, optional
        Fingerprint of the store that the metadata are from. It says whether the SAE was read from a
        folder.

    Raises
    ------
    ValueError
        If the class cannot be found, is not a subclass of `BaseSAE`, or does not accept the recorded
        settings. Encoded documents can still be read.
    """
    settings = {k: v for k, v in metadata.items() if k not in ("sae_type", "sae_class", "class")}
    path = metadata.get("sae_class", metadata.get("class"))
    kind = metadata.get("sae_type")
    if path is not None:
        cls = _find_class(current_name(str(path)), import_modules)
    elif isinstance(kind, str) and kind in _CLASSES:
        cls = _class_of(SAEType(kind))
    elif kind is None:
        raise ValueError(
            "the metadata have neither 'sae_type' nor 'sae_class', so the SAE cannot be rebuilt; "
            "pass the SAE explicitly to encode more documents"
        )
    else:
        raise ValueError(
            f"SAEs of type {str(kind)!r} cannot be rebuilt by this version of interp_embed; "
            f"expected one of {', '.join(repr(k.value) for k in _CLASSES)}, or the path of a class "
            "under 'sae_class'"
        )
    try:
        sae = cls.from_metadata(settings)
    except TypeError as error:
        raise ValueError(
            f"{cls.recorded_as} does not take the recorded settings: {error}"
        ) from error
    from_folder = fingerprint is not None and fingerprint.get("release") == "folder"
    if from_folder and isinstance(sae, HookedSAE) and sae.fingerprint().get("release") != "folder":
        # Records hold whole paths; those of older versions, what was given.
        raise ValueError(
            f"it was read from the folder {settings.get('release')!r}, which holds no SAE, seen from "
            f"{Path.cwd()}. Change to a folder from which the path is right, or pass the SAE"
        )
    return sae


def _class_of(kind: SAEType) -> type[BaseSAE]:
    try:
        found: type[BaseSAE] = getattr(importlib.import_module("interp_embed.sae"), _CLASSES[kind])
    except ImportError as error:
        raise ValueError(
            f"SAEs of type {kind.value!r} need something that is not installed: {error}"
        ) from error
    return found


def _has(module: Any, name: str) -> bool:
    """Return whether a module has what a path with dots names."""
    for part in name.split("."):
        if not hasattr(module, part):
            return False
        module = getattr(module, part)
    return True


def _subclasses(cls: type[Any]) -> Iterator[type[BaseSAE]]:
    """Yield all classes below one, those that were defined last first."""
    for subclass in reversed(cls.__subclasses__()):
        yield subclass
        yield from _subclasses(subclass)


def _find_class(path: str, import_modules: bool) -> type[BaseSAE]:
    """Return the class that is recorded under a name, or else the one that the name leads to."""
    module_name, _, name = path.partition(":")
    module = sys.modules.get(module_name)
    if "<locals>" in name:
        raise ValueError(
            f"its class {name} of module {module_name} was defined inside a function, so it cannot be "
            "found again. Define it at the top of a module for new stores; to resume this one, pass "
            "an SAE of the class"
        )
    for cls in _subclasses(BaseSAE):
        # A class lives on when its module was unloaded, and is not the one that is meant then.
        if cls.recorded_as == path and cls.__module__ in sys.modules:
            return cls
    if module_name == "__main__" and not _has(module, name):
        raise ValueError(
            f"its class {name} was defined in a script or a notebook (its module is __main__), where "
            "this process cannot find it. Define the class in a module that is imported for new "
            "stores; to resume this one, define the class again in the script or notebook and pass "
            "an SAE of it"
        )
    if module is None and not (import_modules or module_name.startswith("interp_embed.")):
        raise ValueError(
            f"its class {name} of module {module_name} is not imported, and a module that a file names "
            "is not imported automatically: import it first, or, for a store, pass resume=True to "
            "load_from_file"
        )
    try:
        value: Any = module or importlib.import_module(module_name)
        for part in name.split("."):
            value = getattr(value, part)
    except Exception as error:  # a module may raise anything while it is imported
        raise ValueError(
            f"the class of the SAE, {path!r}, cannot be imported ({error}); import the module that "
            "defines it, or pass an SAE explicitly"
        ) from error
    if not (isinstance(value, type) and issubclass(value, BaseSAE)):
        raise ValueError(f"{path!r} is not a subclass of interp_embed.sae.BaseSAE")
    return value
