"""Goodfire's published SAEs: their names, the locations of their files, and their contents.

Everything from the hub comes through `hub_file`. File names, layers and language models are
those that SAELens's table of pretrained SAEs has for the same releases; the format of the weights
is that of the code in Goodfire's model cards: a state dict of two linear layers.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed.errors import UnsafePickleError
from interp_embed.sae.identity import close_to, did_you_mean
from interp_embed.sae.releases.hub import from_hub

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

__all__ = ["VARIANTS", "GoodfireVariant", "find_variant", "hub_file", "read_weights"]

_NAME = re.compile(r"(?P<model>[\w.-]+)-SAE-l(?P<layer>\d+)")


@dataclass(frozen=True, slots=True)
class GoodfireVariant:
    """One of Goodfire's SAEs.

    Attributes
    ----------
    name : str
        Such as ``"Llama-3.1-8B-Instruct-SAE-l19"``.
    suffix : str or None
        Of the file with its weights; None for one that Goodfire did not publish.
    neuronpedia : str or None
        Model and source at Neuronpedia, which has labels of its features.
    """

    name: str
    suffix: str | None = None
    neuronpedia: str | None = None

    @property
    def repository(self) -> str:
        """Name on the hub."""
        return f"Goodfire/{self.name}"

    @property
    def file(self) -> str | None:
        """Name of the file with the weights."""
        return None if self.suffix is None else self.name + self.suffix

    @property
    def model(self) -> str:
        """The language model's name on the hub."""
        return f"meta-llama/{self._part('model')}"

    @property
    def layer(self) -> int:
        """The decoder layer whose output the SAE reads, counted from 0."""
        return int(self._part("layer"))

    def _part(self, part: str) -> str:
        found = _NAME.fullmatch(self.name)
        if found is None:
            raise ValueError(
                f"expected a name such as {next(iter(VARIANTS))!r}, which says the language model and "
                f"the layer, got {self.name!r}"
            )
        return found[part]


VARIANTS = {
    variant.name: variant
    for variant in (
        GoodfireVariant("Llama-3.1-8B-Instruct-SAE-l19", ".pth", "llama3.1-8b-it/19-resid-post-gf"),
        GoodfireVariant(
            "Llama-3.3-70B-Instruct-SAE-l50", ".pt", "llama3.3-70b-it/50-resid-post-gf"
        ),
    )
}
"""The SAEs that Goodfire published, by name."""


def find_variant(name: str, *, published: bool) -> GoodfireVariant:
    """Return the known facts about an SAE.

    Parameters
    ----------
    name : str
    published : bool
        Whether its files must come from Goodfire.

    Raises
    ------
    TypeError
        If the name is not a string.
    ValueError
        If Goodfire has published no such SAE, or the name does not say the layer.
    """
    if not isinstance(name, str):
        raise TypeError(f"variant_name must be a string, got {type(name).__name__}: {name!r}")
    known = VARIANTS.get(name)
    if known is not None:
        return known
    if published:
        raise ValueError(
            f"variant_name must be one of {', '.join(map(repr, VARIANTS))}, got {name!r}; for your "
            "own SAE in this format also pass weights= and model="
            f"{did_you_mean(close_to(name, VARIANTS))}"
        )
    variant = GoodfireVariant(name)
    _ = variant.layer
    return variant


def hub_file(repository: str, name: str) -> Path:
    """Return a file of the hub, from the hub's own cache if it is there.

    Raises
    ------
    OSError
        If it cannot be fetched.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    what = f"{name} of {repository}"
    with from_hub(what, repository, files=name, instead="its path as weights=") as cached:
        try:
            return Path(hf_hub_download(repository, name, local_files_only=cached))
        except LocalEntryNotFoundError:
            raise
        except (OSError, EntryNotFoundError) as error:
            reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise OSError(
                f"{what} could not be fetched from the hub ({reason}); if the file is on this machine, "
                "pass its path as weights="
            ) from error


def read_weights(path: Path) -> dict[str, torch.Tensor]:
    """Read an SAE in Goodfire's format, as tensors that are mapped from the file if possible.

    No code in the file is run: only tensors are read (``weights_only=True``).

    Parameters
    ----------
    path : Path
        A file of ``torch.save`` with ``encoder_linear.weight`` (d_sae, d_in),
        ``encoder_linear.bias`` (d_sae,), ``decoder_linear.weight`` (d_in, d_sae) and
        ``decoder_linear.bias`` (d_in,).

    Returns
    -------
    dict of str to Tensor
        On the CPU, in the dtypes of the file.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    UnsafePickleError
        If the file asks for more than tensors.
    ValueError
        If it is damaged, or is not an SAE in this format.
    """
    import torch

    if not path.is_file():
        raise FileNotFoundError(f"the weights of the SAE are not found: no file {str(path)!r}")
    try:
        archive = zipfile.is_zipfile(path)
    except zipfile.BadZipFile as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    with path.open("rb") as file:
        if not archive and file.read(4) == b"PK\x03\x04":
            raise ValueError(f"{path} is damaged: it is cut off")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickles that are refused all the same
            # Files of before torch 1.6 are no archives, which is what can be mapped.
            found = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL ([\w.]+)", str(error))
        if wanted is None:
            raise ValueError(f"{path} is not a file of torch.save, or is damaged") from error
        raise UnsafePickleError(
            f"{path} asks for {wanted[1]}, expected only tensors; it was not run"
        ) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged files have torch raise nearly anything
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} is not a file of torch.save, or is damaged: {reason}") from error
    _check(path, found)
    return {str(name): tensor for name, tensor in found.items()}


_SHAPES = {
    "encoder_linear.weight": ("d_sae", "d_in"),
    "encoder_linear.bias": ("d_sae",),
    "decoder_linear.weight": ("d_in", "d_sae"),
    "decoder_linear.bias": ("d_in",),
}


def _check(path: Path, found: Any) -> None:
    """Raise unless what was read is an SAE in Goodfire's format, sizes and all."""
    import torch

    if not isinstance(found, dict) or set(found) != set(_SHAPES):
        has = sorted(map(str, found)) if isinstance(found, dict) else type(found).__name__
        raise ValueError(
            f"{path} is not an SAE in Goodfire's format: expected {', '.join(_SHAPES)}, found {has}"
        )
    sizes: Mapping[str, int] = {}
    for name, axes in _SHAPES.items():
        tensor = found[name]
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise ValueError(f"{path}: {name} is not a tensor of floating-point numbers")
        if tensor.ndim != len(axes):
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {' x '.join(axes)}"
            )
        sizes = dict(zip(axes, tensor.shape, strict=True)) | dict(sizes)
        expected = tuple(sizes[axis] for axis in axes)
        if tuple(tensor.shape) != expected or 0 in expected:
            raise ValueError(
                f"{path}: {name} has shape {tuple(tensor.shape)}, expected {expected} as in "
                f"{next(iter(_SHAPES))}"
            )
