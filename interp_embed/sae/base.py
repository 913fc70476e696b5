"""The contract of an SAE: the methods that every back end offers to a dataset.

`BaseSAE` keeps the constructor, attributes and methods of the first ``interp_embed``, so that a
subclass written for it (with `load_models`, `encode` and `destroy_models`) runs unchanged. A
dataset uses two more methods: `encode_chunk` also returns token ids and character spans and isolates
failures, and `fingerprint` returns everything that activations depend on.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar, Self

from interp_embed.core.spans import partition_spans
from interp_embed.errors import SAENotLoadedError
from interp_embed.sae.assemble import chunk_from_encode
from interp_embed.sae.device import parse_device
from interp_embed.sae.model.template import render_chat
from interp_embed.sae.sae_types import plain_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from scipy.sparse import csr_matrix

    from interp_embed.core.chunk import Chunk

__all__ = ["BaseSAE"]


class BaseSAE(ABC):
    """A sparse autoencoder together with the language model it reads.

    Parameters
    ----------
    truncate : bool
        If true, documents longer than the context are cut; otherwise they fail.
    use_assistant_role : bool
        If a chat template is applied: whether a document is the assistant's message (true) or the
        user's (false).
    device : str or mapping
        ``"cpu"``, ``"cuda:0"``, ... for both models, or ``{"model": ..., "sae": ...}``.

    Attributes
    ----------
    loaded : bool
    tokenizer : PreTrainedTokenizerBase or None
        Set by `load_models`.
    model_device, sae_device : str
    recorded_as : str
        Class attribute: the name, ``module:name``, under which stores record the class. A resumed
        run compares it with the name of its SAE, and the class is found again by it. The default is
        the place where the class is defined. If you move a class, set ``recorded_as`` in its body to
        the recorded name, so that its stores can still be resumed. Subclasses do not inherit it.
    makes_batches : bool
        Class attribute: whether `encode_prepared` takes any number of documents and makes batches
        itself. Otherwise it gets ``batch_size`` documents at once, or fewer if memory is short.
    """

    recorded_as: ClassVar[str] = "interp_embed.sae:BaseSAE"
    makes_batches = False

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        own = vars(cls).get("recorded_as", f"{cls.__module__}:{cls.__qualname__}")
        if not isinstance(own, str) or not all(own.partition(":")):
            raise ValueError(
                f"recorded_as of class {cls.__qualname__} must have the form 'module:name', "
                f"got {own!r:.100}"
            )
        cls.recorded_as = own

    def __init__(
        self,
        truncate: bool = True,
        use_assistant_role: bool = True,
        device: str | Mapping[str, str] = "cpu",
    ) -> None:
        self.loaded = False
        self.tokenizer: Any = None
        self.truncate = truncate
        self.use_assistant_role = use_assistant_role
        self.model_device, self.sae_device = parse_device(device)
        self._feature_labels: dict[int, str] = {}
        self._d_sae: int | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({'loaded' if self.is_loaded() else 'not loaded'})"

    @abstractmethod
    def load_models(self) -> None:
        """Load the SAE, the language model and the tokenizer."""

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Sequence[csr_matrix | None]:
        """Return one (n_tokens, d_sae) matrix per text; None for a text that failed."""

    @abstractmethod
    def destroy_models(self) -> None:
        """Release everything that `load_models` loaded."""

    def load(self) -> None:
        """Load models and feature labels."""
        self.load_models()
        self.load_feature_labels()
        self.loaded = True

    def load_feature_labels(self) -> None:
        """Load the feature labels, if the SAE has any."""
        return

    def is_loaded(self) -> bool:
        """Return whether the SAE can encode."""
        return self.loaded

    def destroy(self) -> None:
        """Free the models and the accelerator's memory. Does nothing if the SAE is not loaded."""
        if not self.loaded:
            return
        self.destroy_models()
        self.loaded = False
        torch = sys.modules.get("torch")
        if torch is not None and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def set_device(self, device: str | Mapping[str, str]) -> None:
        """Choose where the next `load` puts the models."""
        self.model_device, self.sae_device = parse_device(device)

    def metadata(self) -> dict[str, Any]:
        """Return the constructor's arguments, as values that can be written as JSON."""
        return {"truncate": self.truncate, "use_assistant_role": self.use_assistant_role}

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Build an SAE from what `metadata` returned."""
        return cls(**{k: v for k, v in metadata.items() if k not in ("sae_type", "sae_class")})

    def feature_labels(self) -> dict[int, str]:
        """Return the labels of the features that have one, by feature."""
        return self._feature_labels

    @property
    def d_sae(self) -> int | None:
        """Number of features; None until it is known."""
        return self._d_sae

    def fingerprint(self) -> dict[str, Any]:
        """Return everything known that activations depend on, as values for JSON.

        Devices and batch sizes are left out. Before `load` it contains the part that is known
        without loading; loading adds to that part and does not change it.
        """
        settings = {k: v for k, v in self.metadata().items() if k != "device"}
        return {"class": type(self).recorded_as, **plain_json(settings)}

    def chat_template_exists(self) -> bool:
        """Return whether the tokenizer has a chat template."""
        self._require_loaded()
        return getattr(self.tokenizer, "chat_template", None) is not None

    def encode_chat(
        self, conversations: Sequence[Sequence[Mapping[str, str]]]
    ) -> Sequence[csr_matrix | None]:
        """Apply the chat template to conversations and encode the results."""
        self._require_loaded()
        return self.encode([render_chat(self.tokenizer, c) for c in conversations])

    def tokenize(
        self, documents: Sequence[str], as_tokens: bool = True, padding: bool = False
    ) -> Any:
        """Tokenise documents, through the chat template if there is one.

        Parameters
        ----------
        documents : sequence of str
        as_tokens : bool
            Return strings; otherwise the tokenizer's output with ``input_ids``.
        padding : bool
            Pad to the longest document.

        Returns
        -------
        list of list of str, or BatchEncoding
        """
        self._require_loaded()
        templated = self.chat_template_exists()
        role = "assistant" if self.use_assistant_role else "user"
        texts = [
            render_chat(self.tokenizer, [{"role": role, "content": d}]) if templated else d
            for d in documents
        ]
        inputs = self.tokenizer(
            texts, truncation=self.truncate, add_special_tokens=not templated, padding=padding
        )
        if not as_tokens:
            return inputs
        encodings = getattr(inputs, "encodings", None) or [None] * len(texts)
        return [
            self._strings(text, ids, encoding)
            for text, ids, encoding in zip(texts, inputs["input_ids"], encodings, strict=True)
        ]

    def _strings(self, text: str, ids: Sequence[int], encoding: Any) -> list[str]:
        """Return a string for each token; those of ordinary tokens join to the text."""
        if encoding is None:  # a tokenizer that does not say where its tokens are
            return [self.tokenizer.decode([i]) for i in ids]
        start, end, special = partition_spans(
            text,
            encoding.offsets,
            encoding.special_tokens_mask,
            complete=not encoding.overflowing,
        )
        return [
            self.tokenizer.decode([i]) if extra else text[a:b]
            for i, a, b, extra in zip(
                ids, start.tolist(), end.tolist(), special.tolist(), strict=True
            )
        ]

    def encode_chunk(self, texts: Sequence[str]) -> Chunk:
        """Encode documents with their tokens.

        If one document fails, the others are not affected: its status is ``FAILED`` and the chunk
        holds the reason. This implementation makes the chunk from the results of `tokenize` and
        `encode`, and aligns token strings with the text to find their spans.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        Chunk
            With ``doc_id`` 0 to n - 1. Its ``d_sae`` is 0 if no document could be encoded and the
            number of features is not known.

        Raises
        ------
        SAENotLoadedError
            Before `load`.
        MemoryError or torch.OutOfMemoryError
            If memory is too short for several documents at once. Pass fewer documents.
        """
        self._require_loaded()
        chunk = chunk_from_encode(self, texts)
        if self._d_sae is None and chunk.d_sae:
            self._d_sae = chunk.d_sae
        return chunk

    def prepare(self, texts: Sequence[str]) -> Sequence[Any]:
        """Prepare documents before the device is free, for example by tokenising them.

        Called on another thread while `encode_prepared` runs. This implementation does nothing.

        Parameters
        ----------
        texts : sequence of str

        Returns
        -------
        sequence
            One item per text. Any of them, in any order, may be passed to `encode_prepared` together.
        """
        return texts

    def encode_prepared(self, prepared: Sequence[Any]) -> Chunk:
        """Encode documents that `prepare` returned; otherwise like `encode_chunk`."""
        return self.encode_chunk(prepared)

    def _require_loaded(self) -> None:
        if not self.is_loaded():
            name = type(self).__name__
            raise SAENotLoadedError(f"{name} is not loaded; call its load() first")
