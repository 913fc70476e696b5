"""The common part of SAEs that read a language model run on this machine up to a hook.

A subclass says where its SAE comes from. This module does the rest: tokenising, running the model,
batches, windows, failures and the fingerprint.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any

from interp_embed.core.progress import quiet_progress
from interp_embed.sae.base import BaseSAE
from interp_embed.sae.device import device_problem
from interp_embed.sae.identity import hash_loaded, located, recordable, what_was_asked
from interp_embed.sae.model.tokenizing import (
    DocumentTokenizer,
    bos_token_id,
    require_integer,
    resolve_overflow,
)
from interp_embed.sae.outputs import chunk_matrices, id_rows, string_rows

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from scipy.sparse import csr_matrix

    from interp_embed.core.chunk import Chunk
    from interp_embed.sae.model.encoding import ChunkEncoder
    from interp_embed.sae.model.language_model import HookedModel
    from interp_embed.sae.model.tokenizing import TokenizedDocument

__all__ = ["HookedSAE"]


class HookedSAE(BaseSAE):
    """An SAE and the language model that it reads, both on this machine.

    Parameters
    ----------
    model : str, path, Module or None
        A language model instead of the one that the SAE names.
    tokenizer : str, path, PreTrainedTokenizerBase or None
        A tokenizer instead of the model's own.
    dtype : str
        Dtype of the language model, or ``"auto"``. The SAE itself always runs in float32.
    chat_template : bool
        Whether documents are encoded as a message in the model's chat template.
    prepend_bos : bool or None
        Whether to put BOS in front. The default is what the SAE's metadata say.
    context_size : int or None
        Longest document in tokens, instead of the SAE's own context size. The model's limit also
        applies.
    bos_activations : bool or None
        Whether the BOS token's activations are kept. The default is what the SAE's metadata say.
    batch_tokens : int or None
        Largest number of tokens, including padding, that the model runs on at once.
    overflow : {"truncate", "window", "fail"} or None
        How to treat documents longer than the context. The default follows ``truncate``.
    window_overlap : int or None
        With ``overflow="window"``: number of tokens that a window shares with the previous one.
    truncate, use_assistant_role, device
        As for `BaseSAE`.

    Attributes
    ----------
    model : Module or None
        The language model, once loaded.
    sae : sae_lens.SAE or None
        The autoencoder, once loaded.

    Raises
    ------
    TypeError
        If an argument that must be an integer is not one.
    ValueError
        If arguments contradict each other, or a number is out of range.
    """

    makes_batches = True

    def __init__(
        self,
        *,
        model: Any,
        tokenizer: Any,
        dtype: str,
        chat_template: bool,
        prepend_bos: bool | None,
        context_size: int | None,
        bos_activations: bool | None,
        batch_tokens: int | None,
        overflow: str | None,
        window_overlap: int | None,
        truncate: bool,
        use_assistant_role: bool,
        device: str | Mapping[str, str],
    ) -> None:
        self.overflow = resolve_overflow(overflow, window_overlap, truncate=truncate)
        super().__init__(
            truncate=self.overflow != "fail", use_assistant_role=use_assistant_role, device=device
        )
        self.window_overlap = window_overlap
        require_integer("context_size", context_size, 1)
        require_integer("batch_tokens", batch_tokens, 1)
        self.dtype = dtype
        self.chat_template = chat_template
        self.prepend_bos = prepend_bos
        self.context_size = context_size
        self.bos_activations = bos_activations
        self.batch_tokens = batch_tokens
        self.model: Any = None
        self.sae: Any = None
        self._given_model = located(model)
        self._given_tokenizer = located(tokenizer)
        self._hooked: HookedModel | None = None
        self._encoder: ChunkEncoder | None = None
        self._documents: DocumentTokenizer | None = None
        self._hashes: dict[str, Any] | None = None
        self._asked: dict[str, Any] | None = None

    def metadata(self) -> dict[str, Any]:
        """Return the constructor's arguments as values for JSON.

        A model or tokenizer that was passed as an object is recorded as None.
        """
        return {
            **super().metadata(),
            "model": recordable(self._given_model),
            "tokenizer": recordable(self._given_tokenizer),
            "dtype": self.dtype,
            "chat_template": self.chat_template,
            "prepend_bos": self.prepend_bos,
            "context_size": self.context_size,
            "bos_activations": self.bos_activations,
            "batch_tokens": self.batch_tokens,
            "overflow": self.overflow,
            "window_overlap": self.window_overlap,
            "device": {"model": self.model_device, "sae": self.sae_device},
        }

    @abstractmethod
    def _load_sae(self) -> Any:
        """Return the SAE, one of SAELens for inference in float32, on ``sae_device``."""

    def _load_model(self, metadata: Any) -> HookedModel:
        """Return the language model that the SAE's metadata name, or the one that was given."""
        from interp_embed.sae.model.language_model import load_hooked_model

        return load_hooked_model(
            metadata,
            model=self._given_model,
            tokenizer=self._given_tokenizer,
            device=self.model_device,
            dtype=self.dtype,
        )

    def _own_folder(self) -> Path | None:
        """Return the folder that the SAE is in, where its files are what tells it from others."""
        return None

    def load_models(self) -> None:
        """Load the SAE, then the language model up to the hooked layer.

        Raises
        ------
        ValueError
            If a device does not exist. Nothing is loaded then.
        """
        for device in dict.fromkeys((self.sae_device, self.model_device)):
            if device != "auto" and (problem := device_problem(device)) is not None:
                raise ValueError(f"device {device!r}: {problem}. Use device='cpu'")
        with quiet_progress():
            self._load_models()

    def _load_models(self) -> None:
        from interp_embed.sae.model.encoding import ChunkEncoder
        from interp_embed.sae.model.sparsify import SparseEncoder

        self.sae = self._load_sae()
        metadata = self.sae.cfg.metadata
        hooked = self._load_model(metadata)
        self._hooked, self.model, self.tokenizer = hooked, hooked.model, hooked.tokenizer
        if self.chat_template and getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError("chat_template=True, but the tokenizer has no chat template")
        prepend = self.prepend_bos
        if prepend is None:
            prepend = metadata.prepend_bos is not False
        keep_bos = self.bos_activations
        if keep_bos is None:
            keep_bos = not metadata.exclude_bos_activation
        limits = [self.context_size or metadata.context_size, hooked.max_positions]
        role = "assistant" if self.use_assistant_role else "user"
        # A chat template may put BOS in front by itself.
        has_bos = prepend or (self.chat_template and not keep_bos)
        bos = bos_token_id(self.tokenizer, metadata.bos_token_id) if has_bos else None
        self._documents = DocumentTokenizer(
            self.tokenizer,
            bos=bos if prepend else None,
            max_tokens=min((int(limit) for limit in limits if limit), default=None),
            overflow=self.overflow,
            role=role if self.chat_template else None,
            window_overlap=self.window_overlap,
        )
        sparse = SparseEncoder(self.sae)
        self._d_sae = sparse.d_sae
        self._encoder = ChunkEncoder(
            hooked.runner,
            sparse,
            silent_token=None if keep_bos else bos,
            # Where a model that spreads over devices has come to lie ("meta": on the disk).
            on_cpu=all(p.device.type in ("cpu", "meta") for p in self.model.parameters()),
            batch_tokens=self.batch_tokens,
        )
        self._hashes = None

    def destroy_models(self) -> None:
        """Release the SAE, the language model and the tokenizer."""
        self.model = self.sae = self.tokenizer = None
        self._hooked = self._encoder = self._documents = None
        self._hashes = None

    def fingerprint(self) -> dict[str, Any]:
        """Return everything known that activations depend on, as values for JSON.

        Settings that loading resolves (dtype, BOS, context size, the model) are listed under
        ``asked`` as they were given. Once loaded, their resolved values are listed too. The path of
        a folder does not matter: its files are hashed.
        """
        unresolved = ("model", "tokenizer", "dtype", "prepend_bos", "context_size", "batch_tokens",
                      "bos_activations", "overflow", "window_overlap")  # fmt: skip
        known = {k: v for k, v in super().fingerprint().items() if k not in unresolved}
        if self.overflow == "window":
            # Under a name that every store has: one that is new would not be compared.
            by = "" if self.window_overlap is None else f", overlap {self.window_overlap}"
            known["truncate"] = f"window{by}"
        if self._asked is None:
            self._asked = self._ask()
        known["asked"] = dict(self._asked)
        if self._d_sae is not None:
            known["d_sae"] = self._d_sae
        if self._hooked is None or self._documents is None or self._encoder is None:
            return known
        if self._hashes is None:
            self._hashes = hash_loaded(
                self.sae,
                self.tokenizer,
                templated=self.chat_template,
                date=self._documents.template_date,
            )
        return {
            **known,
            **self._hashes,
            **self._hooked.identity,
            "bos_token_id": self._documents.bos,
            "bos_activations": self._encoder.silent_token is None,
            "max_tokens": self._documents.max_tokens,
            "hook_name": self.sae.cfg.metadata.hook_name,
        }

    def _ask(self) -> dict[str, Any]:
        """Return what was asked for, as far as the rest of the fingerprint does not say it."""
        settings = {name: getattr(self, name) for name in
                    ("dtype", "prepend_bos", "context_size", "bos_activations")}  # fmt: skip
        return what_was_asked(
            self._own_folder(), self._given_model, self._given_tokenizer, settings
        )

    def tokenize(
        self, documents: Sequence[str], as_tokens: bool = True, padding: bool = False
    ) -> Any:
        """Tokenise documents exactly as `encode` does.

        Parameters
        ----------
        documents : sequence of str
        as_tokens : bool
            Return strings; otherwise ``input_ids`` and ``attention_mask``.
        padding : bool
            Pad on the right to the longest document.

        Returns
        -------
        list of list of str, or BatchEncoding
            One string per row of activations. The strings of ordinary tokens join to the encoded part
            of the document. Special tokens (BOS, chat template, padding) appear as the tokenizer
            writes them. A document that cannot be encoded has no tokens.
        """
        self._require_loaded()
        tokenizer = self._tokenizer()
        encoded = tokenizer.documents(documents)
        tables = [document.tokens for document in encoded]
        if as_tokens:
            pad = str(tokenizer.tokenizer.decode([self._pad_id()])) if padding else None
            return string_rows(documents, tables, tokenizer.vocabulary(encoded), padding=pad)
        from transformers import BatchEncoding

        return BatchEncoding(id_rows(tables, padding=self._pad_id() if padding else None))

    def encode(self, texts: Sequence[str]) -> list[csr_matrix | None]:
        """Return one (n_tokens, d_sae) matrix per text; None for a text that failed."""
        return chunk_matrices(self.encode_chunk(texts))

    def encode_chat(
        self, conversations: Sequence[Sequence[Mapping[str, str]]]
    ) -> list[csr_matrix | None]:
        """Apply the chat template to conversations and return the activations of each.

        Parameters
        ----------
        conversations : sequence of conversations
            Each a sequence of ``{"role": ..., "content": ...}``.

        Raises
        ------
        ValueError
            If the tokenizer has no chat template.
        """
        self._require_loaded()
        if not self.chat_template_exists():
            raise ValueError(
                "the tokenizer has no chat template, so it cannot encode conversations"
            )
        return chunk_matrices(
            self._encode_documents(self._tokenizer().conversations(conversations))
        )

    def encode_chunk(self, texts: Sequence[str]) -> Chunk:
        """Encode documents with their tokens; see `BaseSAE.encode_chunk`.

        Documents of similar length run together, whatever their order.
        """
        return self.encode_prepared(self.prepare(texts))

    def prepare(self, texts: Sequence[str]) -> list[TokenizedDocument]:
        """Tokenise documents; see `BaseSAE.prepare`."""
        self._require_loaded()
        return self._tokenizer().documents(texts)

    def encode_prepared(self, prepared: Sequence[TokenizedDocument]) -> Chunk:
        """Encode documents that `prepare` tokenised."""
        self._require_loaded()
        return self._encode_documents(prepared)

    def _encode_documents(self, documents: Sequence[TokenizedDocument]) -> Chunk:
        if self._encoder is None:
            raise RuntimeError("load_models() has not been called")
        return self._encoder(documents, self._tokenizer().vocabulary(documents))

    def _tokenizer(self) -> DocumentTokenizer:
        if self._documents is None:
            raise RuntimeError("load_models() has not been called")
        return self._documents

    def _pad_id(self) -> int:
        for number in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id):
            if number is not None:
                return int(number)
        return 0
