"""SAEs that run on this machine: any release of SAELens, a folder, or the embedded SAE."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interp_embed.sae.hooked import HookedSAE
from interp_embed.sae.identity import published_at, unknown_sae
from interp_embed.sae.quiet import quiet_saelens
from interp_embed.sae.releases.embedded_release import (
    EMBEDDED_RELEASE,
    EMBEDDED_SAE_ID,
    embedded_labels,
    embedded_sae_folder,
)
from interp_embed.sae.releases.hub import from_hub, switched_off
from interp_embed.sae.sae_types import SAEType

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["LocalSAE"]


class LocalSAE(HookedSAE):
    """An SAE of SAELens and its language model, run up to the hooked layer on this machine.

    Documents are encoded as SAELens does it: as raw text, with the BOS token that the SAE expects in
    front. Activations agree with SAELens's own, token by token.

    Parameters
    ----------
    sae_id : str
        Name of the SAE in its release. Not used if ``release`` is itself a folder with an SAE.
    release : str or path
        A release of SAELens (see its table of pretrained SAEs), a folder in SAELens's format (the
        one with ``cfg.json``, or its parent with ``sae_id`` naming the folder inside), or
        ``"interp-embed-smollm2-135m"``, which comes with this package.
    model : str, path or Module, optional
        A language model instead of the one that the SAE names: a name on the hub, a folder, a
        loaded transformers model (with ``tokenizer``) or a TransformerLens model.
    tokenizer : str, path or PreTrainedTokenizerBase, optional
        A tokenizer instead of the model's own.
    dtype : str
        Dtype of the language model: ``"float32"``, ``"bfloat16"``, ... The default is the dtype in
        the SAE's metadata. If there is none, it is bfloat16 on a GPU that supports it and float32
        elsewhere. The SAE itself always runs in float32.
    chat_template : bool
        Whether documents are encoded as a message in the model's chat template. Off by default,
        because SAELens runs SAEs on raw text. The template's tokens are marked special.
    prepend_bos : bool, optional
        Whether to put BOS in front. The default is what the SAE's metadata say.
    context_size : int, optional
        Longest document in tokens, including BOS, instead of the SAE's own context size. The model's
        limit also applies.
    bos_activations : bool, optional
        Whether the BOS token's activations are kept. By default they are, as in SAELens. The
        exception is an SAE that was trained without them (``exclude_bos_activation`` in its
        metadata), for which they mean nothing.
    batch_tokens : int, optional
        Largest number of tokens, including padding, that the model runs on at once. It is reduced
        for a while after the device runs out of memory.
    overflow : {"truncate", "window", "fail"}, optional
        How to treat documents longer than the context: cut them, run them in overlapping windows
        that are joined to one row per document, or let them fail. The default follows ``truncate``.
    window_overlap : int, optional
        With ``overflow="window"``: number of tokens that a window shares with the previous one. The
        default is a quarter of the context. Shared tokens keep their activations from the earlier
        window, in which more text precedes them.
    truncate, use_assistant_role, device
        As for `BaseSAE`. ``truncate=False`` means ``overflow="fail"``.

    Raises
    ------
    TypeError
        If an argument that must be an integer is not one.
    ValueError
        If arguments contradict each other, or a number is out of range.

    Examples
    --------
    >>> sae = LocalSAE.embedded()
    >>> sae.release, sae.sae_id, sae.d_sae
    ('interp-embed-smollm2-135m', 'blocks.9.hook_resid_post', 4096)
    """

    recorded_as = "interp_embed.sae:LocalSAE"

    def __init__(
        self,
        sae_id: str = "blocks.8.hook_resid_pre",
        release: str | Path = "gpt2-small-res-jb",
        *,
        model: Any = None,
        tokenizer: Any = None,
        dtype: str = "auto",
        chat_template: bool = False,
        prepend_bos: bool | None = None,
        context_size: int | None = None,
        bos_activations: bool | None = None,
        batch_tokens: int | None = None,
        overflow: str | None = None,
        window_overlap: int | None = None,
        truncate: bool = True,
        use_assistant_role: bool = True,
        device: str | Mapping[str, str] = "cpu",
    ) -> None:
        super().__init__(
            model=model,
            tokenizer=tokenizer,
            dtype=dtype,
            chat_template=chat_template,
            prepend_bos=prepend_bos,
            context_size=context_size,
            bos_activations=bos_activations,
            batch_tokens=batch_tokens,
            overflow=overflow,
            window_overlap=window_overlap,
            truncate=truncate,
            use_assistant_role=use_assistant_role,
            device=device,
        )
        self.sae_id = sae_id
        self.release = str(release)
        self._folder = self._find_folder()
        if self._folder is not None:
            config = json.loads((self._folder / "cfg.json").read_text(encoding="utf-8"))
            self._d_sae = int(config["d_sae"]) if "d_sae" in config else None

    @classmethod
    def embedded(cls, **kwargs: Any) -> Self:
        """Return the SAE that comes with the package, for SmolLM2-135M-Instruct."""
        return cls(sae_id=EMBEDDED_SAE_ID, release=EMBEDDED_RELEASE, **kwargs)

    def __repr__(self) -> str:
        loaded = "loaded" if self.is_loaded() else "not loaded"
        return f"{type(self).__name__}(release={self.release!r}, sae_id={self.sae_id!r}, {loaded})"

    def _find_folder(self) -> Path | None:
        """Return the folder of an SAE on disk; None for a release of SAELens."""
        if self.release == EMBEDDED_RELEASE:
            if self.sae_id != EMBEDDED_SAE_ID:
                raise ValueError(
                    f"sae_id must be {EMBEDDED_SAE_ID!r} for release {EMBEDDED_RELEASE!r}, "
                    f"got {self.sae_id!r}"
                )
            return embedded_sae_folder()
        given = Path(self.release)
        with contextlib.suppress(RuntimeError):  # of a user that there is not
            given = given.expanduser()
        given = given.absolute()
        for folder in (given / self.sae_id, given):
            if (folder / "cfg.json").is_file():
                self.release = str(given)  # which is recorded, and sought again from anywhere
                return folder
        if Path(self.release).is_absolute() or self.release.startswith((".", "~")):
            raise FileNotFoundError(
                f"no SAE in {self.release!r}: neither it nor its folder {self.sae_id!r} has a cfg.json"
            )
        if self.sae_id == EMBEDDED_RELEASE:
            raise ValueError(
                f"sae_id={self.sae_id!r} is the name of a release. Pass release={EMBEDDED_RELEASE!r}, "
                f"sae_id={EMBEDDED_SAE_ID!r}, or use LocalSAE.embedded()"
            )
        return None

    def metadata(self) -> dict[str, Any]:
        """Return the constructor's arguments as values for JSON.

        A model or tokenizer that was passed as an object is recorded as None.
        """
        return {
            **super().metadata(),
            "sae_id": self.sae_id,
            "release": self.release,
            "sae_type": SAEType.LOCAL.value,
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return everything known that activations depend on; see `HookedSAE.fingerprint`.

        The path of a folder does not matter: its files are hashed.
        """
        known = super().fingerprint()
        if self._own_folder() is not None:
            known["release"] = known["sae_id"] = "folder"
        return known

    def _own_folder(self) -> Path | None:
        """Return the SAE's folder; None where it is in a registry or the embedded one."""
        return self._folder if self.release != EMBEDDED_RELEASE else None

    def _load_sae(self) -> Any:
        with quiet_saelens():
            from sae_lens import SAE

            if self._folder is not None:
                sae = SAE.load_from_disk(self._folder, device=self.sae_device, dtype="float32")
            else:
                sae = self._from_registry(SAE)
        return sae.eval().requires_grad_(False)

    def _from_registry(self, SAE: Any) -> Any:
        if (problem := self.problem()) is not None:
            raise ValueError(problem)
        repository, files = published_at(self.release, self.sae_id)
        with (
            from_hub(
                f"the SAE {self.sae_id!r} of {self.release!r}",
                repository,
                files=files,
                instead="its folder as release= (on the command line --sae FOLDER)",
            ) as cached,
            switched_off(cached),
        ):
            return SAE.from_pretrained(
                self.release, self.sae_id, device=self.sae_device, dtype="float32"
            )

    def problem(self) -> str | None:
        """Return why there is no such SAE; None if there is one, or if only loading can tell.

        Imports SAELens for an SAE of its registry. Loads nothing.
        """
        if self._folder is not None:
            return None
        with quiet_saelens():
            return unknown_sae(self.release, self.sae_id)

    def load_feature_labels(self) -> None:
        """Load the names of the embedded SAE's features; other releases have none."""
        if self.release == EMBEDDED_RELEASE:
            self._feature_labels = embedded_labels()
