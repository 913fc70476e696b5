"""The SAE that a store names, for encoding a store that another process made."""

from __future__ import annotations

from typing import TYPE_CHECKING

from interp_embed.sae.device import device_problem
from interp_embed.sae.hooked import HookedSAE
from interp_embed.sae.loading import load_sae_from_metadata

if TYPE_CHECKING:
    from interp_embed.sae.base import BaseSAE
    from interp_embed.store.store import Store

__all__ = ["keep_labels", "recorded_sae"]


def recorded_sae(store: Store, device: str = "auto") -> BaseSAE:
    """Build the SAE that the store was made for, without loading it.

    The module of its class is imported if necessary, which runs that module's code.

    Parameters
    ----------
    store
        The store.
    device
        A device that `BaseSAE` accepts, or ``"auto"``. For SAEs that run a model here, ``"auto"`` is
        a GPU if there is one (or all of them, for a model that was spread). Others stay on the device
        that their class chooses.

    Raises
    ------
    ValueError
        If it cannot be built from the recorded metadata.
    """
    try:
        sae = load_sae_from_metadata(
            store.attributes["sae"],
            import_modules=True,
            fingerprint=store.attributes["fingerprint"],
        )
    except Exception as error:
        raise ValueError(
            f"the SAE of the store at {store.storage.url} cannot be rebuilt; pass the SAE "
            f"(on the command line with --sae): {error}"
        ) from error
    if device != "auto":
        sae.set_device(device)
    elif isinstance(sae, HookedSAE):
        if device_problem("cuda:0") is not None:
            sae.set_device("cpu")
        elif sae.model_device == "auto":  # it may not fit on one GPU
            sae.set_device({"model": "auto", "sae": "cuda:0"})
        else:
            sae.set_device("cuda:0")
    return sae


def keep_labels(store: Store, sae: BaseSAE, *, wrote: bool = True) -> None:
    """Store the labels of the SAE, unless the store has labels.

    If nothing was written before (``wrote`` is false), the store may be read-only: labels that cannot
    be stored are then left out.
    """
    if labels := sae.feature_labels():
        store.labels.begin(labels, "sae", wrote=wrote)
