"""Goodfire's hosted SAEs (Ember), through the HTTP calls that its own SDK makes.

The SDK (``goodfire`` 0.3.5, its newest release) is not used: it pins ``httpx<0.28``, and it waits for
rate limits with ``time.sleep``, which holds up every other request of an event loop. The paths and
fields here are those of that release. Integrations elsewhere were removed in November 2025 because the
service had gone (langchain-ai/docs#1307), so this module is useful only with a server that still
answers these calls.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from scipy.sparse import csr_matrix

from interp_embed.net.keys import read_key
from interp_embed.net.urls import checked_url
from interp_embed.sae.api import ApiDocument, ApiSAE
from interp_embed.sae.remote.base import require_number
from interp_embed.sae.remote.retries import retrying
from interp_embed.sae.remote.transport import (
    BadAnswerError,
    HttpTransport,
    require_http,
)
from interp_embed.sae.remote.wire import JSON, parse_json
from interp_embed.sae.sae_types import SAEType

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["KEY_VARIABLE", "GoodfireApiSAE"]

KEY_VARIABLE = "GOODFIRE_API_KEY"
_WIDTHS = {
    "meta-llama/Meta-Llama-3.1-8B-Instruct": 65_536,
    "meta-llama/Llama-3.3-70B-Instruct": 131_072,
}
"""Number of features per variant, from the SDK."""
_FEATURES = "/api/inference/v1/chat-attribution/compute-features"
_LOOKUP = "/api/inference/v1/features/lookup"
_LABELS_AT_ONCE = 50


class GoodfireApiSAE(ApiSAE):
    """An SAE behind Goodfire's API.

    The hosted service appears to be shut down; see ``docs/reference/saes.md``.

    A document is sent as a chat message, so the model's chat template surrounds it. The template's
    tokens are marked special. The key is read from the environment variable ``GOODFIRE_API_KEY`` when
    the SAE is loaded. It is never recorded.

    Parameters
    ----------
    variant_name : str
        The model that the SAE reads: ``"meta-llama/Llama-3.3-70B-Instruct"``,
        ``"meta-llama/Meta-Llama-3.1-8B-Instruct"``, or another one that the service knows (with
        ``d_sae``).
    max_concurrency, max_retries, base_delay
        As for `ApiSAE`.
    base_url : str
        URL of the API.
    d_sae : int, optional
        Number of features. Required for a variant other than these two.
    timeout : float
        Seconds to wait for an answer to begin or to continue.
    truncate, use_assistant_role, device
        As for `BaseSAE`. The service decides where a document is cut.

    Raises
    ------
    ValueError
        If an argument is out of range, or the variant's number of features is not known.
    """

    recorded_as = "interp_embed.sae:GoodfireApiSAE"
    _transport = ("base_url", "timeout")

    def __init__(
        self,
        variant_name: str,
        max_concurrency: int = 8,
        max_retries: int = 3,
        base_delay: float = 2.0,
        *,
        base_url: str = "https://api.goodfire.ai",
        d_sae: int | None = None,
        timeout: float = 60.0,
        truncate: bool = True,
        use_assistant_role: bool = True,
        device: str | Mapping[str, str] = "cpu",
    ) -> None:
        super().__init__(
            max_concurrency,
            max_retries,
            base_delay,
            truncate=truncate,
            use_assistant_role=use_assistant_role,
            device=device,
        )
        if not isinstance(variant_name, str):
            raise TypeError(f"variant_name must be a string, got {type(variant_name).__name__}")
        width = _WIDTHS.get(variant_name) if d_sae is None else d_sae
        if width is None:
            raise ValueError(
                f"the number of features of {variant_name!r} is not known; pass d_sae=, or one of "
                f"{', '.join(map(repr, _WIDTHS))}"
            )
        require_number("d_sae", width, 1, whole=True)
        require_number("timeout", timeout, 0)
        if timeout <= 0:
            raise ValueError(f"timeout must be above 0, got {timeout}")
        self.variant_name = variant_name
        self.base_url = checked_url(base_url, "base_url")
        self.timeout = timeout
        self._d_sae = int(width)
        self._http: HttpTransport | None = None

    def __repr__(self) -> str:
        loaded = "loaded" if self.is_loaded() else "not loaded"
        return f"{type(self).__name__}({self.variant_name!r}, {loaded})"

    def service(self) -> str:
        """Return the name of the service in messages."""
        return f"Goodfire's API at {self.base_url}"

    def answer_seconds(self) -> float:
        """Return how long a request waits for its answer."""
        return self.timeout

    def metadata(self) -> dict[str, Any]:
        """Return the constructor's arguments as values for JSON; the key is not among them."""
        return {
            **super().metadata(),
            "variant_name": self.variant_name,
            "base_url": self.base_url,
            "d_sae": self._d_sae,
            "timeout": self.timeout,
            "sae_type": SAEType.GOODFIRE_API.value,
        }

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Self:
        """Build an SAE from the result of `metadata`, or from that of the original library's class."""
        settings = dict(metadata)
        if "variant" in settings:
            settings.setdefault("variant_name", settings.pop("variant"))
        return super().from_metadata(settings)

    async def open(self) -> None:
        """Create the client.

        Raises
        ------
        ValueError
            If the environment variable with the key is not set.
        """
        require_http("GoodfireApiSAE")
        key = read_key(KEY_VARIABLE)
        if key is None:
            raise ValueError(
                f"GoodfireApiSAE needs a key in the environment variable {KEY_VARIABLE}, which is not "
                "set. Without access to the service, use GoodfireSAE, which runs Goodfire's published "
                "SAEs on this machine"
            )
        self._http = HttpTransport(self.base_url, key=key, timeout=self.timeout)

    async def close(self) -> None:
        """Close connections."""
        http, self._http = self._http, None
        if http is not None:
            await http.close()

    async def encode_document(self, text: str) -> ApiDocument:
        """Return a document's activations, and its tokens as strings."""
        role = "assistant" if self.use_assistant_role else "user"
        said = await self._post(
            _FEATURES,
            {
                "messages": [{"role": role, "content": text}],
                "aggregate_by": "count",
                "model": self.variant_name,
            },
        )
        try:
            return _document(said, self._d_sae or 0)
        except BadAnswerError as error:
            raise BadAnswerError(f"{self.base_url}{_FEATURES} sent a bad answer: {error}") from None

    def fetch_feature_labels(self, features: Sequence[int]) -> dict[int, str]:
        """Fetch the labels of some features and keep them for `feature_labels`.

        Parameters
        ----------
        features : sequence of int

        Returns
        -------
        dict of int to str
            Features without a label are left out.
        """
        self._require_loaded()
        found: dict[int, str] = self.wait_for(self._lookup([int(f) for f in features]))
        self._feature_labels |= found
        return found

    async def _lookup(self, features: list[int]) -> dict[int, str]:
        labels: dict[int, str] = {}
        for first in range(0, len(features), _LABELS_AT_ONCE):
            asked = {
                "indices": features[first : first + _LABELS_AT_ONCE],
                "model": self.variant_name,
            }
            said = await retrying(
                lambda asked=asked: self._post(_LOOKUP, asked),  # type: ignore[misc]
                self.classify,
                max_retries=self.max_retries,
                base_delay=self.base_delay,
            )
            rows = said.get("features")
            for row in rows if isinstance(rows, list) else [None]:
                number = row.get("index_in_sae") if isinstance(row, dict) else None
                label = row.get("label") if isinstance(row, dict) else None
                if not isinstance(number, int) or not isinstance(label, str):
                    raise BadAnswerError(
                        f"{self.base_url}{_LOOKUP} sent a bad answer: 'features' is not a list of "
                        "objects with 'index_in_sae' and 'label'"
                    )
                labels[number] = label
        return labels

    async def _post(self, path: str, asked: Mapping[str, Any]) -> dict[str, Any]:
        if self._http is None:
            raise RuntimeError("GoodfireApiSAE has no connection; call its load() first")
        answer = await self._http.post(path, json.dumps(asked).encode(), accept=JSON)
        self._http.refuse_echo(self.base_url + path, answer.body)
        try:
            return parse_json(answer.body, "the answer")
        except BadAnswerError as error:
            raise BadAnswerError(f"{self.base_url}{path}: {error}") from None


def _document(said: Mapping[str, Any], d_sae: int) -> ApiDocument:
    """Return what an answer says of a document.

    Raises
    ------
    BadAnswerError
        If it is not what the SDK expects.
    """
    tokens = said.get("tokens")
    if not isinstance(tokens, list):
        raise BadAnswerError("'tokens' is not a list")
    strings: list[str] = []
    rows: list[int] = []
    features: list[int] = []
    values: list[float] = []
    for position, token in enumerate(tokens):
        string = token.get("token") if isinstance(token, dict) else None
        active = token.get("attributions") if isinstance(token, dict) else None
        if not isinstance(string, str) or not isinstance(active, list):
            raise BadAnswerError(f"token {position} has no string 'token' or list 'attributions'")
        strings.append(string)
        seen: set[int] = set()
        for one in active:
            number = one.get("index_in_sae") if isinstance(one, dict) else None
            value = one.get("activation_strength") if isinstance(one, dict) else None
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < d_sae:
                raise BadAnswerError(
                    f"token {position} has feature {number!r:.40}, expected one from 0 to {d_sae - 1}"
                )
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise BadAnswerError(
                    f"token {position} has activation {value!r:.40}, expected a number"
                )
            if number in seen:
                raise BadAnswerError(f"token {position} has feature {number} twice")
            seen.add(number)
            rows.append(position)
            features.append(number)
            values.append(float(value))
    with np.errstate(over="ignore"):
        found = np.array(values, np.float64).astype(np.float32)
    matrix = csr_matrix((found, (rows, features)), shape=(len(strings), d_sae))
    return ApiDocument(matrix, strings)
