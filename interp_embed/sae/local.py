"""SAEs that run on this machine: any release of SAELens, a folder, or the embedded one."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from interp_embed.chunk import DocumentStatus
from interp_embed.progress import quiet_progress
from interp_embed.sae.base import BaseSAE
from interp_embed.sae.embedded_release import EMBEDDED_RELEASE, EMBEDDED_SAE_ID, embedded_sae_folder
from interp_embed.sae.identity import hash_loaded, recordable, what_was_asked
from interp_embed.sae.kinds import SAEType, device_problem
from interp_embed.sae.tokenizing import DocumentTokenizer, bos_token_id, resolve_overflow
from interp_embed.sae.tokens import token_strings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scipy.sparse import csr_matrix

    from interp_embed.chunk import Chunk
    from interp_embed.sae.encoding import ChunkEncoder
    from interp_embed.sae.models import HookedModel
    from interp_embed.sae.tokenizing import TokenizedDocument

__all__ = ["LocalSAE"]


class LocalSAE(BaseSAE):
    """An SAE of SAELens and its language model, run up to the hooked layer on this machine.

    Documents are encoded as raw text with the BOS token that the SAE expects in front, as SAELens
    runs them. Activations agree with SAELens's own, token by token.

    Parameters
    ----------
    sae_id : str
        Name of the SAE in its release; not used if ``release`` is itself a folder with an SAE.
    release : str or path
        A release of SAELens (see its table of pretrained SAEs), a folder in SAELens's format (the
        one with ``cfg.json``, or its parent with ``sae_id`` naming the folder inside), or
        ``"interp-embed-smollm2-135m"``, which comes with this package.
    model : str, path or Module, optional
        A language model in place of the one that the SAE names: a name on the hub, a folder, a
        loaded transformers model (with ``tokenizer``) or a TransformerLens model.
    tokenizer : str, path or PreTrainedTokenizerBase, optional
        A tokenizer in place of the model's own.
    dtype : str
        Of the language model: ``"float32"``, ``"bfloat16"``, ... By default what the SAE's
        metadata ask for, else bfloat16 on a GPU that has it and float32 elsewhere. The SAE itself
        always runs in float32.
    chat_template : bool
        Whether documents are encoded as a message in the model's chat template. Off by default,
        since SAEs are run on raw text by SAELens; the template's tokens are marked special.
    prepend_bos : bool, optional
        In place of what the SAE's metadata say.
    context_size : int, optional
        The longest document in tokens, BOS included, in place of the SAE's own context size; the
        model's limit holds in any case.
    bos_activations : bool, optional
        Whether the BOS token's activations are kept. By default they are, as in SAELens's own run,
        except for SAEs whose metadata say that they were trained without
        (``exclude_bos_activation``), for which they mean nothing.
    batch_tokens : int, optional
        Largest number of tokens, padding included, that the model is run on at once. Less for a
        while when the device runs out of memory.
    overflow : {"truncate", "window", "fail"}, optional
        What becomes of documents that are longer than the context: they are cut, run in windows that
        overlap and put together to one row a document, or fail. By default as ``truncate`` says.
    window_overlap : int, optional
        With ``overflow="window"``: tokens that a window shares with the one before; by default a
        quarter of the context. Their activations are those of the first of the two, where more text
        stands before them.
    truncate, use_assistant_role, device
        As for `BaseSAE`; ``truncate=False`` is ``overflow="fail"``.

    Raises
    ------
    ValueError
        If arguments contradict each other.

    Examples
    --------
    >>> sae = LocalSAE.embedded()
    >>> sae.release, sae.sae_id, sae.d_sae
    ('interp-embed-smollm2-135m', 'blocks.9.hook_resid_post', 4096)
    """

    makes_batches = True

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
        self.overflow = resolve_overflow(overflow, window_overlap, truncate=truncate)
        super().__init__(
            truncate=self.overflow != "fail", use_assistant_role=use_assistant_role, device=device
        )
        self.window_overlap = window_overlap
        for name, value in (("context_size", context_size), ("batch_tokens", batch_tokens)):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.sae_id = sae_id
        self.release = str(release)
        self.dtype = dtype
        self.chat_template = chat_template
        self.prepend_bos = prepend_bos
        self.context_size = context_size
        self.bos_activations = bos_activations
        self.batch_tokens = batch_tokens
        self.model: Any = None
        self.sae: Any = None
        self._given_model = model
        self._given_tokenizer = tokenizer
        self._folder = self._find_folder()
        self._hooked: HookedModel | None = None
        self._encoder: ChunkEncoder | None = None
        self._documents: DocumentTokenizer | None = None
        self._hashes: dict[str, Any] | None = None
        self._asked: dict[str, Any] | None = None
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
                    f"release {EMBEDDED_RELEASE!r} has the one SAE {EMBEDDED_SAE_ID!r}, "
                    f"got sae_id={self.sae_id!r}"
                )
            return embedded_sae_folder()
        for folder in (Path(self.release) / self.sae_id, Path(self.release)):
            if (folder / "cfg.json").is_file():
                return folder
        if Path(self.release).is_absolute() or self.release.startswith((".", "~")):
            raise FileNotFoundError(
                f"no SAE in {self.release!r}: it has no cfg.json, and no folder {self.sae_id!r} with one"
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
            "sae_type": SAEType.LOCAL.value,
        }

    def load_models(self) -> None:
        """Load the SAE, then the language model up to the hooked layer.

        Raises
        ------
        ValueError
            If a device is not there, before anything is loaded.
        """
        for device in dict.fromkeys((self.sae_device, self.model_device)):
            if device != "auto" and (problem := device_problem(device)) is not None:
                raise ValueError(f"device {device!r}: {problem}. Use device='cpu'")
        with quiet_progress():
            self._load_models()

    def _load_models(self) -> None:
        from interp_embed.sae.encoding import ChunkEncoder
        from interp_embed.sae.models import load_hooked_model
        from interp_embed.sae.sparsify import SparseEncoder

        self.sae = self._load_sae()
        metadata = self.sae.cfg.metadata
        hooked = load_hooked_model(
            metadata,
            model=self._given_model,
            tokenizer=self._given_tokenizer,
            device=self.model_device,
            dtype=self.dtype,
        )
        self._hooked, self.model, self.tokenizer = hooked, hooked.model, hooked.tokenizer
        if self.chat_template and getattr(self.tokenizer, "chat_template", None) is None:
            raise ValueError("chat_template=True, but the tokenizer has no chat template")
        prepend = self.prepend_bos
        if prepend is None:
            prepend = metadata.prepend_bos is not False
        limits = [self.context_size or metadata.context_size, hooked.max_positions]
        role = "assistant" if self.use_assistant_role else "user"
        self._documents = DocumentTokenizer(
            self.tokenizer,
            bos=bos_token_id(self.tokenizer, metadata.bos_token_id) if prepend else None,
            max_tokens=min((int(limit) for limit in limits if limit), default=None),
            overflow=self.overflow,
            role=role if self.chat_template else None,
            window_overlap=self.window_overlap,
        )
        keep_bos = self.bos_activations
        if keep_bos is None:
            keep_bos = not metadata.exclude_bos_activation
        sparse = SparseEncoder(self.sae)
        self._d_sae = sparse.d_sae
        self._encoder = ChunkEncoder(
            hooked.runner,
            sparse,
            silent_token=None if keep_bos else self._documents.bos,
            on_cpu=self.model_device == "cpu",
            batch_tokens=self.batch_tokens,
        )
        self._hashes = None

    def _load_sae(self) -> Any:
        with warnings.catch_warnings():
            # What SAELens imports warns of its own future, and what it loads gives advice on how
            # to load the model (which `models` follows): neither is the user's concern.
            warnings.simplefilter("ignore", DeprecationWarning)
            warnings.filterwarnings("ignore", message=r"\s*This SAE has non-empty")
            from sae_lens import SAE

            if self._folder is not None:
                sae = SAE.load_from_disk(self._folder, device=self.sae_device, dtype="float32")
            else:
                try:
                    sae = SAE.from_pretrained(
                        self.release, self.sae_id, device=self.sae_device, dtype="float32"
                    )
                except Exception as error:
                    if (problem := self._unknown_release()) is None:
                        raise
                    raise ValueError(problem) from error
        return sae.eval().requires_grad_(False)

    def _unknown_release(self) -> str | None:
        """Return what is wrong with the release; None if it is known, or may be on the hub."""
        from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

        known = get_pretrained_saes_directory()
        if self.release in known:
            return None
        folders = (Path(self.sae_id) / self.release, Path(self.sae_id))
        if self.sae_id in known or any((f / "cfg.json").is_file() for f in folders):
            return (
                f"there is no release {self.release!r}, but sae_id={self.sae_id!r} is one: "
                "the two are swapped"
            )
        if "/" in self.release:
            return None
        return (
            f"release={self.release!r} is no release that SAELens knows, no folder with an SAE, and "
            "no repository on the hub; SAELens's table of pretrained SAEs lists the releases"
        )

    def destroy_models(self) -> None:
        """Let go of the SAE, the language model and the tokenizer."""
        self.model = self.sae = self.tokenizer = None
        self._hooked = self._encoder = self._documents = None
        self._hashes = None

    def fingerprint(self) -> dict[str, Any]:
        """Return everything known that activations depend on, as values for JSON.

        Settings that loading resolves (dtype, BOS, context size, the model) are there as they were
        asked for, under ``asked``, and once loaded also as what they resolved to. A folder's place
        does not matter: its files are hashed.
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
        known["d_sae"] = self._d_sae
        if self._folder is not None and self.release != EMBEDDED_RELEASE:
            known["release"] = known["sae_id"] = "folder"
        if known["d_sae"] is None:
            del known["d_sae"]
        if self._hooked is None or self._documents is None or self._encoder is None:
            return known
        if self._hashes is None:
            self._hashes = hash_loaded(self.sae, self.tokenizer, templated=self.chat_template)
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
        folder = self._folder if self.release != EMBEDDED_RELEASE else None
        return what_was_asked(folder, self._given_model, self._given_tokenizer, settings)

    def tokenize(
        self, documents: Sequence[str], as_tokens: bool = True, padding: bool = False
    ) -> Any:
        """Tokenise documents exactly as `encode` sees them.

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
            A string for each row of activations. Those of ordinary tokens join to the part of the
            document that is encoded; special tokens (BOS, chat template, padding) come as the
            tokenizer writes them. A document that cannot be encoded has no tokens.
        """
        self._require_loaded()
        tokenizer = self._tokenizer()
        encoded = tokenizer.documents(documents)
        width = max((len(d.tokens) for d in encoded), default=0) if padding else 0
        if as_tokens:
            vocabulary = tokenizer.vocabulary(encoded)
            pad = str(tokenizer.tokenizer.decode([self._pad_id()]))
            strings = [
                token_strings(text, d.tokens, vocabulary)
                for text, d in zip(documents, encoded, strict=True)
            ]
            return [row + [pad] * (width - len(row)) for row in strings]
        from transformers import BatchEncoding

        ids = [d.tokens.id.tolist() for d in encoded]
        return BatchEncoding(
            {
                "input_ids": [row + [self._pad_id()] * (width - len(row)) for row in ids],
                "attention_mask": [[1] * len(row) + [0] * (width - len(row)) for row in ids],
            }
        )

    def encode(self, texts: Sequence[str]) -> list[csr_matrix | None]:
        """Return the activations of each text, (n_tokens, d_sae); None for one that failed."""
        return _matrices(self.encode_chunk(texts))

    def encode_chat(
        self, conversations: Sequence[Sequence[Mapping[str, str]]]
    ) -> list[csr_matrix | None]:
        """Return the activations of each conversation, with the chat template applied.

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
        return _matrices(self._encode_documents(self._tokenizer().conversations(conversations)))

    def encode_chunk(self, texts: Sequence[str]) -> Chunk:
        """Encode documents with their tokens; see `BaseSAE.encode_chunk`.

        Documents of similar length are run together, whatever their order.
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


def _matrices(chunk: Chunk) -> list[csr_matrix | None]:
    return [
        None if chunk.status[i] == DocumentStatus.FAILED else chunk.csr(i)
        for i in range(chunk.n_documents)
    ]
