"""Build an SAE, not loaded yet, from the values of ``--sae`` and ``--device``."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from interp_embed.encode.recorded_sae import recorded_sae
from interp_embed.sae import device as devices

if TYPE_CHECKING:
    from collections.abc import Iterator

    from interp_embed.sae import BaseSAE
    from interp_embed.store.store import Store

__all__ = ["best_device", "build_sae", "quiet_loading", "reached", "sae_for"]

_GOODFIRE = "goodfire:"
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_][\w.]*")


def build_sae(spec: str, device: str) -> BaseSAE:
    """Return the SAE that ``spec`` names.

    Parameters
    ----------
    spec
        ``embedded``; ``goodfire:VARIANT``; the URL of a server; a folder in SAELens's format;
        ``module:factory``, where ``factory()`` returns an SAE and the module may be in the current
        folder; or ``RELEASE/SAE_ID``.
    device
        ``auto``, or a device that `BaseSAE` accepts. With ``auto`` an SAE from a factory stays on the
        device that it was made for.

    Raises
    ------
    typer.BadParameter
        If it is none of these.
    """
    from interp_embed.sae import LocalSAE

    if spec == "embedded":
        return LocalSAE.embedded(device=best_device(device))
    if spec.startswith(("http://", "https://")):
        return _behind(spec)
    if spec.startswith(_GOODFIRE):
        return _goodfire(spec.removeprefix(_GOODFIRE), device)
    folder = Path(spec)
    with contextlib.suppress(RuntimeError):  # of a user that there is not
        folder = folder.expanduser()
    if (folder / "cfg.json").is_file():
        folder = folder.resolve()
        return LocalSAE(release=folder, sae_id=folder.name, device=best_device(device))
    if _FACTORY.fullmatch(spec):
        sae = _from_factory(spec)
        if device != "auto":  # devices that torch does not know are for such an SAE to judge
            sae.set_device(best_device(device) if device.startswith("cuda") else device)
        return sae
    if folder.is_dir() or spec.startswith((".", "/", "~")):
        raise typer.BadParameter(f"{spec} is not a folder with an SAE: it contains no cfg.json")
    release, _, sae_id = spec.partition("/")
    if not release or not sae_id:
        raise typer.BadParameter(
            "--sae must be 'embedded', RELEASE/SAE_ID, goodfire:VARIANT, a URL, a folder in SAELens's "
            f"format or module:factory, got {spec!r}"
        )
    return LocalSAE(release=release, sae_id=sae_id, device=best_device(device))


def _behind(url: str) -> BaseSAE:
    from interp_embed.sae.http import HttpSAE

    try:
        return HttpSAE(url)
    except ValueError as error:
        raise typer.BadParameter(f"--sae: {error}") from None


def _goodfire(variant: str, device: str) -> BaseSAE:
    from interp_embed.sae import GoodfireSAE

    chosen = best_device(device)
    spread = device == "auto" and chosen != "cpu"  # the larger one fits on no single GPU
    try:
        return GoodfireSAE(variant, device={"model": "auto", "sae": chosen} if spread else chosen)
    except ValueError as error:
        raise typer.BadParameter(f"--sae {_GOODFIRE}{variant}: {error}") from None


def sae_for(store: Store, spec: str | None, device: str) -> BaseSAE:
    """Return the SAE that ``--sae`` names, or otherwise the one that the store names.

    The module of its class may also be in the current folder.
    """
    device = device if device == "auto" else best_device(device)
    if spec is not None:
        return build_sae(spec, device)
    _look_here()
    return recorded_sae(store, device)


def _look_here() -> None:
    """Let modules be imported from the current folder, as with ``python -m``."""
    if "" not in sys.path:
        sys.path.insert(0, "")


def _from_factory(spec: str) -> BaseSAE:
    from interp_embed.sae import BaseSAE

    module, _, name = spec.partition(":")
    _look_here()
    try:
        found = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there; what it imports is not
        raise typer.BadParameter(
            f"module {module!r} is neither installed nor in the current folder"
        ) from None
    try:
        for part in name.split("."):
            found = getattr(found, part)
    except AttributeError as error:
        raise typer.BadParameter(f"{spec}: {error}") from None
    try:
        sae = found() if callable(found) else found
    except ImportError:
        raise  # says which package to install
    except Exception as error:  # a factory may raise anything
        raise ValueError(
            f"--sae {spec}: the factory failed when called without arguments: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(sae, BaseSAE):
        raise typer.BadParameter(
            f"--sae {spec}: the factory must return an interp_embed.sae.BaseSAE, got "
            f"{type(sae).__name__}"
        )
    return sae


def best_device(device: str) -> str:
    """Return the device to use; ``auto`` is a GPU if torch sees one, and the CPU otherwise.

    Raises
    ------
    ValueError
        If torch cannot use the device here.
    """
    if device == "auto":
        return devices.best_device()
    if (problem := devices.device_problem(device)) is not None:
        raise ValueError(f"--device {device}: {problem}. Use --device cpu, or auto")
    return device


@contextlib.contextmanager
def reached(sae: BaseSAE) -> Iterator[None]:
    """Ask the server of an SAE, if it has one, what it serves; other SAEs are not loaded.

    A wrong URL is thus reported before documents are written and before processes are started.
    """
    from interp_embed.sae.remote.base import RemoteSAE

    if not isinstance(sae, RemoteSAE):
        yield
        return
    sae.load()
    try:
        yield
    finally:
        sae.destroy()


def quiet_loading() -> None:
    """Keep transformers from showing a progress bar for weights that load in a second."""
    with contextlib.suppress(ImportError):
        from transformers.utils import logging

        logging.disable_progress_bar()
