"""Goodfire's SAEs of Llama, run on this machine."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed.sae.hooked import HookedSAE
from interp_embed.sae.quiet import quiet_casts, quiet_saelens
from interp_embed.sae.releases.goodfire_files import VARIANTS, find_variant, hub_file, read_weights
from interp_embed.sae.releases.neuronpedia import published_labels
from interp_embed.sae.sae_types import SAEType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from interp_embed.core.chunk import Chunk
    from interp_embed.sae.model.language_model import HookedModel
    from interp_embed.sae.model.tokenizing import TokenizedDocument

__all__ = ["GoodfireSAE"]

_DEFAULT = next(iter(VARIANTS))


class GoodfireSAE(HookedSAE):
    """One of Goodfire's SAEs and the Llama model that it reads, run on this machine.

    A document is encoded as a message in the model's chat template, by default the assistant's
    message. The template's tokens are marked special. An activation is ``relu(W x + b)`` of the
    residual stream x after the layer that the variant's name ends in (Goodfire's model cards).

    The language model is loaded only up to that layer. Both language models are gated on the hub:
    accept their license there, and log in with ``hf auth login``.

    Parameters
    ----------
    variant_name : str
        ``"Llama-3.1-8B-Instruct-SAE-l19"`` or ``"Llama-3.3-70B-Instruct-SAE-l50"``. With
        ``weights`` and ``model`` any name that ends in ``-SAE-l`` and the layer's number.
    quantize : bool
        Whether to load the language model in 8 bits. This takes half the memory and changes the
        activations slightly. Needs ``pip install 'interp_embed[quantize]'``.
    weights : str or path, optional
        A file with the SAE's weights in Goodfire's format, instead of the one on the hub.
    model : str, path or Module, optional
        A language model instead of the one that the variant names: a name on the hub, a folder, or
        a loaded transformers model (with ``tokenizer``).
    tokenizer : str, path or PreTrainedTokenizerBase, optional
        A tokenizer instead of the model's own.
    dtype : str
        Dtype of the language model, on every device. The SAE itself runs in float32.
    chat_template : bool
        Whether documents are encoded as a message. Otherwise they are raw text with BOS in front.
    prepend_bos : bool, optional
        Whether to put BOS in front if the chat template does not. By default it is put there.
    context_size : int, optional
        Longest document in tokens, including the template's. The model's limit also applies.
    bos_activations : bool, optional
        Whether activations on BOS are kept. By default they are.
    batch_tokens, overflow, window_overlap
        As for `LocalSAE`.
    truncate, use_assistant_role, device
        As for `BaseSAE`. ``{"model": "auto", "sae": "cuda:0"}`` spreads the language model over all
        devices, which a large model needs.

    Raises
    ------
    TypeError
        If an argument that must be an integer is not one.
    ValueError
        If Goodfire has no SAE of this name, or arguments contradict each other.

    Examples
    --------
    >>> sae = GoodfireSAE("Llama-3.3-70B-Instruct-SAE-l50", device={"model": "auto", "sae": "cuda:0"})
    >>> sae.layer, sae.is_loaded()
    (50, False)
    """

    recorded_as = "interp_embed.sae:GoodfireSAE"

    def __init__(
        self,
        variant_name: str = _DEFAULT,
        quantize: bool = False,
        *,
        weights: str | Path | None = None,
        model: Any = None,
        tokenizer: Any = None,
        dtype: str = "bfloat16",
        chat_template: bool = True,
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
        self._variant = find_variant(variant_name, published=weights is None or model is None)
        if quantize and model is not None and not isinstance(model, str | Path):
            raise ValueError(
                "quantize=True needs a model that is not loaded yet, but model= is already loaded; "
                "pass its name or folder instead"
            )
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
        self.variant_name = variant_name
        self.quantize = quantize
        self.weights = None if weights is None else Path(weights).expanduser().absolute()

    def __repr__(self) -> str:
        loaded = "loaded" if self.is_loaded() else "not loaded"
        quantized = ", quantize=True" if self.quantize else ""
        return f"{type(self).__name__}({self.variant_name!r}{quantized}, {loaded})"

    @property
    def layer(self) -> int:
        """The decoder layer whose output is read, counted from 0."""
        return self._variant.layer

    def metadata(self) -> dict[str, Any]:
        """Return the constructor's arguments as values for JSON.

        A model or tokenizer that was passed as an object is recorded as None.
        """
        return {
            **super().metadata(),
            "variant_name": self.variant_name,
            "quantize": self.quantize,
            "weights": None if self.weights is None else str(self.weights),
            "sae_type": SAEType.GOODFIRE.value,
        }

    def fingerprint(self) -> dict[str, Any]:
        """Return everything known that activations depend on; see `HookedSAE.fingerprint`.

        The path of the file with the weights does not matter: its contents are hashed when it is
        loaded.
        """
        return {name: value for name, value in super().fingerprint().items() if name != "weights"}

    def load_models(self) -> None:
        """Load the SAE, then the language model up to its layer.

        Raises
        ------
        ImportError
            If ``quantize`` is true and bitsandbytes is not installed.
        OSError
            If a file cannot be fetched from the hub.
        ValueError
            If a device does not exist, the weights are damaged, or the model does not fit the SAE.
        """
        if self.quantize:
            from interp_embed.sae.model.trunk import quantization_problem

            if (problem := quantization_problem()) is not None:
                raise ImportError(f"quantize=True: {problem}")
        super().load_models()

    def _load_sae(self) -> Any:
        with quiet_saelens():
            from sae_lens import SAE

            path = self.weights
            if path is None:
                path = hub_file(self._variant.repository, str(self._variant.file))
            sae = SAE.load_from_disk(
                path, device=self.sae_device, dtype="float32", converter=self._as_saelens
            )
        return sae.eval().requires_grad_(False)

    def _as_saelens(
        self, path: str | Path, device: str, cfg_overrides: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
        """Return configuration and weights of a file as SAELens has them: its standard SAE."""
        import torch

        weights = read_weights(Path(path))
        d_sae, d_in = weights["encoder_linear.weight"].shape
        config = {
            "architecture": "standard",
            "d_in": d_in,
            "d_sae": d_sae,
            "apply_b_dec_to_input": False,
            "device": device,
            "model_name": self._variant.model,
            "model_class_name": "AutoModelForCausalLM",  # transformers, never TransformerLens
            "hook_name": f"blocks.{self.layer}.hook_resid_post",
            "prepend_bos": True,
            **(cfg_overrides or {}),
        }

        def put(name: str) -> torch.Tensor:
            # To the device first: it is faster at converting.
            return weights[name].to(device).to(torch.float32)

        return config, {
            "W_enc": put("encoder_linear.weight").T.contiguous(),
            "b_enc": put("encoder_linear.bias").clone(),  # nothing stays mapped from the file
            "W_dec": put("decoder_linear.weight").T.contiguous(),
            "b_dec": put("decoder_linear.bias").clone(),
        }

    def _load_model(self, metadata: Any) -> HookedModel:
        from interp_embed.sae.model.language_model import load_hooked_model

        hooked = load_hooked_model(
            metadata,
            model=self._variant.model if self._given_model is None else self._given_model,
            tokenizer=self._given_tokenizer,
            device=self.model_device,
            dtype=self.dtype,
            layers=self.layer + 1,
            quantize=self.quantize,
        )
        config = getattr(hooked.model, "config", None)  # TransformerLens's models have none
        width = self.sae.cfg.d_in if config is None else config.get_text_config().hidden_size
        if width != self.sae.cfg.d_in:
            raise ValueError(
                f"{self.variant_name} reads vectors of {self.sae.cfg.d_in} numbers, but the residual "
                f"stream of the model has {width}"
            )
        return hooked

    def _encode_documents(self, documents: Sequence[TokenizedDocument]) -> Chunk:
        with quiet_casts() if self.quantize else contextlib.nullcontext():
            return super()._encode_documents(documents)

    def load_feature_labels(self) -> None:
        """Fetch the labels that Neuronpedia has published. If that fails, warn and load none."""
        if self._feature_labels or self._variant.neuronpedia is None:
            return
        try:
            self._feature_labels = published_labels(self._variant.neuronpedia, self._d_sae)
        except OSError as error:
            warnings.warn(
                f"feature labels of {self.variant_name} are not available: {error}", stacklevel=3
            )
