"""A selection of documents, and what a language model says that one of its features stands for.

Owns the arguments that labels and scores have in common, and which client asks.
"""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from interp_embed.activations import Activations

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Mapping

    from interp_embed.llm import Answers, FeatureLabelResponse, LLMClient, Prompts

__all__ = [
    "DEFAULT_MODEL",
    "DEFAULT_RETRIES",
    "DEFAULT_TIMEOUT",
    "FeatureLabelling",
    "chosen_dataset",
    "read_prompts",
    "require_packages",
]

DEFAULT_MODEL = "google/gemini-2.5-flash"
DEFAULT_TIMEOUT = 120.0
"""Seconds: models that run on a CPU, or think before they answer, take most of a minute."""
DEFAULT_RETRIES = 4


class FeatureLabelling(Activations):
    """Some documents of a store, and what a language model says that one of their features stands for."""

    async def label_feature(
        self,
        feature: int,
        model: str = DEFAULT_MODEL,
        label_and_score: Mapping[str, Any] | None = None,
        positive_dataset: Activations | None = None,
        negative_dataset: Activations | None = None,
        k: int = 20,
        *,
        base_url: str | None = None,
        examples: Literal["top", "quantile", "random"] = "top",
        negatives: Literal["random", "hard"] = "random",
        seed: int = 0,
        window_tokens: int = 64,
        prompts: str | os.PathLike[str] | Prompts | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
        answers: Answers | None = None,
        client: LLMClient | None = None,
    ) -> FeatureLabelResponse:
        """Ask a language model what a feature stands for.

        Parameters
        ----------
        feature
            Feature index.
        model
            ``openai/NAME`` for a model of OpenAI; otherwise a model of OpenRouter. The key is read
            from ``OPENAI_API_KEY`` or ``OPENROUTER_API_KEY``.
        label_and_score
            A label to make better, and its score: ``{"label": ..., "score": ...}``. What `score_feature`
            returned does, with the label added.
        positive_dataset, negative_dataset
            Where samples come from in which the feature is active, and in which it is not; this
            dataset by default.
        k
            How many of either, at most.
        base_url
            Another server that speaks OpenAI's protocol (vLLM, Ollama, ...), for instance
            ``http://localhost:8000/v1``; ``OPENAI_BASE_URL`` or ``OPENROUTER_BASE_URL`` by default.
        examples
            Which documents show the feature: ``"top"``, some of the 3 k in which it is strongest;
            ``"quantile"``, as many of each strength; ``"random"``, any in which it is active.
        negatives
            ``"random"``, or ``"hard"``: those most like the positive ones in other features.
        seed
            The same seed chooses the same samples.
        window_tokens
            Tokens of a document that are shown, around the strongest; special ones are left out.
        prompts
            A folder of prompts to use in place of the package's; see
            docs/reference/language-models.md.
        settings
            Further parameters of the request, such as ``{"temperature": 0.7, "max_tokens": 500}``.
        timeout
            Seconds that one attempt of a request may take: 120 by default.
        max_retries
            How often a request is sent again, 4 times by default, where the server does not answer in
            time, cannot be reached, is overloaded (429) or fails (5xx).
        answers
            Where answers are kept, so that nothing is asked twice; see `interp_embed.llm.Answers`.
        client
            An open `interp_embed.llm.LLMClient`, to share connections, limits and counts. It stands
            in place of ``model``, ``base_url``, ``answers``, ``timeout`` and ``max_retries``.

        Returns
        -------
        FeatureLabelResponse
            With ``label``, ``brief_description`` and ``detailed_explanation`` (which may be None).

        Raises
        ------
        ValueError
            If the feature is active in no document, or an argument makes no sense.
        IndexError
            If there is no such feature.
        LLMAuthenticationError
            If there is no key, or the server does not take it.
        LLMAnswerError
            If the model did not answer in the form that was asked for, in two rounds. It has the
            answer in ``raw``.
        LLMError
            For other failures of the server, after retries.
        """
        require_packages()
        from interp_embed.llm.label import ask_label, label_task

        positive = chosen_dataset(self, "positive_dataset", positive_dataset)
        negative = chosen_dataset(self, "negative_dataset", negative_dataset)
        texts = read_prompts(prompts)
        options = Connection(base_url, answers, timeout, max_retries, texts)
        async with open_client(model, options, client) as opened:
            task = await asyncio.to_thread(
                label_task,
                positive,
                negative,
                feature,
                opened.model,
                label_and_score=label_and_score,
                k=k,
                examples=examples,
                negatives=negatives,
                seed=seed,
                window_tokens=window_tokens,
                prompts=texts,
                settings=settings,
            )
            return await ask_label(opened, task)

    async def score_feature(
        self,
        feature: int,
        label: str,
        model: str = DEFAULT_MODEL,
        positive_dataset: Activations | None = None,
        negative_dataset: Activations | None = None,
        k: int = 10,
        *,
        method: Literal["reference", "detection", "fuzzing"] = "reference",
        base_url: str | None = None,
        examples: Literal["top", "quantile", "random"] = "top",
        negatives: Literal["random", "hard"] = "random",
        seed: int = 0,
        window_tokens: int = 64,
        prompts: str | os.PathLike[str] | Prompts | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
        answers: Answers | None = None,
        client: LLMClient | None = None,
    ) -> dict[str, Any]:
        """Ask a language model how well a label says where a feature is active.

        Parameters
        ----------
        feature, label
            What is judged.
        model, positive_dataset, negative_dataset, base_url, examples, negatives
            See `label_feature`.
        k
            Samples with the feature, and samples without it, at most.
        method
            ``"reference"``: each sample is shown by itself with its active tokens marked, and judged
            whether the label fits. ``"detection"``: samples with and without the feature are shown
            together without marks, and the model has to say which have it. ``"fuzzing"``: samples
            with the feature are shown, half of them with random tokens marked, and the model has to
            say which are marked rightly. There are as many of either.
        seed, window_tokens, prompts, settings, timeout, max_retries, answers, client
            See `label_feature`.

        Returns
        -------
        dict
            - ``score``: from 0 to 1; the share of samples that the label fits for ``"reference"``,
              the balanced accuracy for the others;
            - ``total_count``: number of samples that were judged;
            - ``responses``: for each a `SingleSampleScoringResponse`, which also has ``document``,
              ``text``, ``expected`` and ``judged``;
            - ``balanced_accuracy``, the mean of the accuracies on samples with and without, and
              ``interval``, its 95 % interval (low, high); NaN where there is only one of the two;
            - ``n_positive``, ``n_negative``: samples with and without;
            - ``failures``: a dictionary with ``documents`` and ``reason`` for each request some of whose
              samples have no usable verdict;
            - ``method``, ``model``, ``prompt_version``, ``seed``.

        Raises
        ------
        ValueError
            If the feature is active in no document, there is nothing to compare with, or an argument
            makes no sense.
        IndexError
            If there is no such feature.
        LLMError
            If no request was answered, or the server does not take the key or know the model. Where
            some samples have no verdict the others count, with a warning.
        """
        require_packages()
        from interp_embed.llm.judging import ask_score
        from interp_embed.llm.score import score_task

        positive = chosen_dataset(self, "positive_dataset", positive_dataset)
        negative = chosen_dataset(self, "negative_dataset", negative_dataset)
        texts = read_prompts(prompts)
        options = Connection(base_url, answers, timeout, max_retries, texts)
        async with open_client(model, options, client) as opened:
            task = await asyncio.to_thread(
                score_task,
                positive,
                negative,
                feature,
                label,
                opened.model,
                k=k,
                method=method,
                examples=examples,
                negatives=negatives,
                seed=seed,
                window_tokens=window_tokens,
                prompts=texts,
                settings=settings,
            )
            return await ask_score(opened, task)


@dataclass(frozen=True, slots=True)
class Connection:
    """How a client is opened, where none is given."""

    base_url: str | None
    answers: Answers | None
    timeout: float
    max_retries: int
    prompts: Prompts


@asynccontextmanager
async def open_client(
    model: str, options: Connection, client: LLMClient | None
) -> AsyncIterator[LLMClient]:
    """Open a client, or check and use the one that is given."""
    from interp_embed.llm import LLMClient

    if client is None:
        async with LLMClient(
            model,
            options.base_url,
            timeout=options.timeout,
            max_retries=options.max_retries,
            answers=options.answers,
            prompts=options.prompts,
        ) as opened:
            yield opened
        return
    if options.base_url is not None or options.answers is not None:
        raise ValueError("give base_url and answers to the client, not beside it")
    if (options.timeout, options.max_retries) != (DEFAULT_TIMEOUT, DEFAULT_RETRIES):
        raise ValueError("give timeout and max_retries to the client, not beside it")
    if client.model != model and model != DEFAULT_MODEL:
        raise ValueError(f"the client is for {client.model!r}, not for {model!r}")
    yield client


def require_packages(*others: str) -> None:
    """Raise ImportError, saying what to install, unless the packages that asking needs are there."""
    try:
        for name in ("openai", "pydantic", "tenacity", *others):
            import_module(name)
    except ImportError as error:
        raise ImportError(
            f"labelling needs the package {error.name}: pip install 'interp_embed[llm]'",
            name=error.name,
        ) from error


def chosen_dataset(own: Activations, name: str, given: Activations | None) -> Activations:
    """Return the data set that is given by an argument of this name, or else the own one."""
    if given is None:
        return own
    if not isinstance(given, Activations):
        raise TypeError(f"{name} must be a Dataset, got {type(given).__name__}: {given!r:.60}")
    return given


def read_prompts(given: str | os.PathLike[str] | Prompts | None) -> Prompts:
    """Return the prompts of a folder, or the package's."""
    from interp_embed.llm import Prompts

    return given if isinstance(given, Prompts) else Prompts(given)
