"""The engine ``interp_embed`` of `xarray.open_dataset`.

xarray imports this module when it looks for engines, so nothing else of the package is imported
here: that is left to the first store.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from typing_extensions import override
from xarray.backends import BackendEntrypoint

if TYPE_CHECKING:
    from collections.abc import Iterable

    import xarray as xr

__all__ = ["InterpEmbedBackend"]


class InterpEmbedBackend(BackendEntrypoint):
    """Opens a store as the `xarray.Dataset` that `interp_embed.Dataset.to_xarray` gives.

    ``chunks={}`` and no ``chunks`` are the same: blocks follow the store's chunks. Other ``chunks``
    are made of those blocks by dask.
    """

    description: ClassVar[str] = "Stores of sparse autoencoder activations"
    open_dataset_parameters: ClassVar[tuple[str, ...]] = ("filename_or_obj", "drop_variables")

    @override
    def open_dataset(  # type: ignore[override]
        self,
        filename_or_obj: str | os.PathLike[str],
        *,
        drop_variables: str | Iterable[str] | None = None,
    ) -> xr.Dataset:
        """Open a store; its columns and activations are read when they are computed.

        Parameters
        ----------
        filename_or_obj
            What `interp_embed.Dataset.load_from_file` opens.
        drop_variables
            Names of variables to leave out; those that there are not are ignored.
        """
        from interp_embed.dataset import Dataset

        found = Dataset.load_from_file(filename_or_obj).to_xarray()
        dropped = (
            [drop_variables] if isinstance(drop_variables, str) else list(drop_variables or ())
        )
        found = found.drop_vars(dropped, errors="ignore")
        for name, variable in found.variables.items():
            if name not in found.indexes:
                # For chunks={}, which without it would make one block of everything.
                chunks = {d: found.chunks.get(d, found.sizes[d]) for d in variable.dims}
                variable.encoding["preferred_chunks"] = chunks
        return found

    @override
    def guess_can_open(self, filename_or_obj: Any) -> bool:
        """Return whether it is a store on this machine; nothing is asked of a network."""
        if not isinstance(filename_or_obj, str | os.PathLike):
            return False
        path = Path(filename_or_obj)
        try:
            if not (path / "plan.json").is_file():
                return False
            root = json.loads((path / "zarr.json").read_bytes())
        except (OSError, ValueError):
            return False
        attributes = root.get("attributes") if isinstance(root, dict) else None
        return isinstance(attributes, dict) and {"fingerprint", "d_sae"} <= set(attributes)
