"""A selection of documents, and what a language model says that its features stand for."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

from interp_embed.activations import Activations
from interp_embed.inputs import check_positive
from interp_embed.progress import show_progress

if TYPE_CHECKING:
    import os
    from collections.abc import AsyncIterator, Mapping, Sequence

    from interp_embed.llm import Answers, FeatureLabelResponse, LLMClient, Prompts
    from interp_embed.llm.bulk import BulkLabels
    from interp_embed.llm.bulk_plan import Asking, Estimate, Work
    from interp_embed.llm.score import Method

__all__ = ["Labelling"]

DEFAULT_MODEL = "google/gemini-2.5-flash"


class Labelling(Activations):
    """Some documents of a store, and what their features stand for."""

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
            A folder of prompts to use in place of the package's; see docs/labels.md.
        settings
            Further parameters of the request, such as ``{"temperature": 0.7, "max_tokens": 500}``.
        answers
            Where answers are kept, so that nothing is asked twice; see `interp_embed.llm.Answers`.
        client
            An open `interp_embed.llm.LLMClient`, to share connections, limits and counts. It stands
            in place of ``model``, ``base_url`` and ``answers``.

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
        _require_packages()
        from interp_embed.llm.label import ask_label, label_task

        positive, negative = _data_sets(self, positive_dataset, negative_dataset)
        texts = _prompts(prompts)
        async with _client(model, base_url, answers, client, texts) as opened:
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
            say which are marked rightly.
        seed, window_tokens, prompts, settings, answers, client
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
            - ``failures``: a dictionary with ``documents`` and ``reason`` for each request without a
              usable answer;
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
            some requests fail the others count, with a warning.
        """
        _require_packages()
        from interp_embed.llm.score import ask_score, score_task

        positive, negative = _data_sets(self, positive_dataset, negative_dataset)
        texts = _prompts(prompts)
        async with _client(model, base_url, answers, client, texts) as opened:
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

    async def label_features(
        self,
        features: Sequence[int] | None = None,
        model: str = DEFAULT_MODEL,
        *,
        score: Method | Sequence[Method] | None = None,
        k: int = 20,
        score_k: int = 10,
        seed: int = 0,
        examples: Literal["top", "quantile", "random"] = "top",
        negatives: Literal["random", "hard"] = "random",
        window_tokens: int = 64,
        scored_on: Activations | None = None,
        max_concurrency: int = 8,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        prices: tuple[float, float] | None = None,
        base_url: str | None = None,
        prompts: str | os.PathLike[str] | Prompts | None = None,
        settings: Mapping[str, Any] | None = None,
        timeout: float = 120.0,
        max_retries: int = 4,
        progress: bool | None = None,
    ) -> BulkLabels:
        """Ask a language model what many features stand for, and keep its labels in the store.

        Answers and labels are on disk as they come, so this may be interrupted or killed anywhere: the
        same call goes on, and pays for no request again whose answer is kept. See docs/labels.md.

        Parameters
        ----------
        features
            Which. None for those that occur in these documents and have no label of this model and
            these prompts yet, or one that lacks a score which is asked for.
        model, k, seed, examples, negatives, window_tokens, base_url, prompts, settings
            See `label_feature`.
        score
            How to score each label: a method of `score_feature`, or several; None for no score.
        score_k
            Samples with the feature, and samples without it, at most, for a score.
        scored_on
            Where the samples of scores come from; this dataset by default.
        max_concurrency
            Requests in flight at most, and so the most that a crash has paid for in vain.
        requests_per_minute, tokens_per_minute
            As the server allows; None for no limit. Tokens are those of prompts and answers, as they
            are estimated before they are sent. Attempts after the first are not counted.
        max_tokens
            Tokens of prompts and answers that this call may take; None for no limit.
        max_cost
            US dollars that this call may take, which needs ``prices``. The server's own cost counts
            where it says it.
        prices
            US dollars for a million tokens of prompts, and of answers.
        timeout, max_retries
            See `interp_embed.llm.LLMClient`.
        progress
            Whether to show a bar, and the estimate before; by default where somebody is watching.

        Returns
        -------
        BulkLabels
            ``table``, a data frame with a row a feature: its label, its score, why it failed, and what
            it took; ``stopped``, why it ended early, if a budget was reached; and what was taken.

        Raises
        ------
        ValueError
            If an argument makes no sense. Nothing is sent.
        IndexError
            If the SAE has no such feature.
        LLMError
            If the server refuses the key, the model or the account, or fails for many features in a
            row. What was labelled before is kept. Any other failure concerns one feature alone, and
            is in the table.
        """
        _require_packages("aiolimiter")
        from interp_embed.llm.budget import Budget, check_limit, check_prices
        from interp_embed.llm.bulk import BulkRun, bulk_result
        from interp_embed.llm.bulk_client import BulkClient
        from interp_embed.llm.bulk_plan import estimate

        for name, value in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
            ("max_tokens", max_tokens),
            ("max_cost", max_cost),
        ):
            check_limit(name, value)
        paid = check_prices(prices, max_cost)
        check_positive(max_concurrency=max_concurrency)
        asking = _asking(
            model, score, k=k, score_k=score_k, seed=seed, examples=examples, negatives=negatives,
            window_tokens=window_tokens, prompts=prompts, settings=settings,
        )  # fmt: skip
        _, scored = _data_sets(self, None, scored_on)
        client = BulkClient(
            model,
            base_url,
            budget=Budget(max_tokens, max_cost, paid),
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrency=max_concurrency,
            timeout=timeout,
            max_retries=max_retries,
            answers=self._store.answers,
            prompts=asking.prompts,
        )
        work = await asyncio.to_thread(self._work, features, asking)
        expected = await asyncio.to_thread(
            estimate, self, scored, work, asking, self._store.answers, paid
        )
        shown = show_progress() if progress is None else progress
        if shown:
            print(expected, file=sys.stderr)
        async with client:
            run = BulkRun(
                self,
                scored,
                work,
                asking,
                client,
                known=self._store.labels.added(),
                add=self._store.labels.add,
                concurrency=max_concurrency,
                progress=shown,
            )
            stopped = await run.run()
        await asyncio.to_thread(self._store.labels.pack)
        await asyncio.to_thread(self._store.answers.pack)
        return bulk_result(run, stopped, expected, asking, client)

    def estimate_labels(
        self,
        features: Sequence[int] | None = None,
        model: str = DEFAULT_MODEL,
        *,
        score: Method | Sequence[Method] | None = None,
        k: int = 20,
        score_k: int = 10,
        seed: int = 0,
        examples: Literal["top", "quantile", "random"] = "top",
        negatives: Literal["random", "hard"] = "random",
        window_tokens: int = 64,
        scored_on: Activations | None = None,
        prices: tuple[float, float] | None = None,
        prompts: str | os.PathLike[str] | Prompts | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Estimate:
        """Return about what `label_features` would take, without sending anything; no key is needed.

        It makes the requests of up to 32 features, evenly spread, and counts their characters.

        Parameters
        ----------
        features, model, score, k, score_k, seed, examples, negatives, window_tokens
            See `label_features`.
        scored_on, prices, prompts, settings
            See `label_features`.

        Returns
        -------
        Estimate
            ``features``, ``requests``, ``kept`` (answered already), ``prompt_tokens``,
            ``completion_tokens``, and ``cost`` in US dollars, None without prices.

        Raises
        ------
        ValueError, IndexError
            As `label_features`.
        """
        _require_packages()
        from interp_embed.llm.budget import check_prices
        from interp_embed.llm.bulk_plan import estimate

        paid = check_prices(prices, None)
        asking = _asking(
            model, score, k=k, score_k=score_k, seed=seed, examples=examples, negatives=negatives,
            window_tokens=window_tokens, prompts=prompts, settings=settings,
        )  # fmt: skip
        _, scored = _data_sets(self, None, scored_on)
        work = self._work(features, asking)
        return estimate(self, scored, work, asking, self._store.answers, paid)

    def _work(self, features: Sequence[int] | None, asking: Asking) -> list[Work]:
        from interp_embed.llm.bulk_plan import check_features, plan_work

        if features is not None:
            return plan_work(check_features(features, self._width()), None, (), asking)
        self._store.labels.refresh()
        found = self.feature_statistics(["document_frequency"])
        occurring = found["document_frequency"].to_numpy() > 0
        return plan_work(None, occurring, self._store.labels.added(), asking)


def _asking(
    model: str,
    score: Method | Sequence[Method] | None,
    *,
    prompts: str | os.PathLike[str] | Prompts | None,
    **choice: Any,
) -> Asking:
    from interp_embed.llm.bulk_plan import Asking, check_methods

    return Asking(model=model, methods=check_methods(score), prompts=_prompts(prompts), **choice)


def _require_packages(*others: str) -> None:
    try:
        for name in ("openai", "pydantic", *others):
            import_module(name)
    except ImportError as error:
        raise ImportError(
            f"labelling needs the package {error.name}: pip install 'interp_embed[llm]'",
            name=error.name,
        ) from error


def _data_sets(
    own: Activations, positive: Activations | None, negative: Activations | None
) -> tuple[Activations, Activations]:
    for name, given in (("positive_dataset", positive), ("negative_dataset", negative)):
        if given is not None and not isinstance(given, Activations):
            raise TypeError(f"{name} must be a Dataset, got {type(given).__name__}: {given!r:.60}")
    return own if positive is None else positive, own if negative is None else negative


def _prompts(given: str | os.PathLike[str] | Prompts | None) -> Prompts:
    from interp_embed.llm import Prompts

    return given if isinstance(given, Prompts) else Prompts(given)


@asynccontextmanager
async def _client(
    model: str,
    base_url: str | None,
    answers: Answers | None,
    client: LLMClient | None,
    prompts: Prompts,
) -> AsyncIterator[LLMClient]:
    """Open a client, or check and use the one that is given."""
    from interp_embed.llm import LLMClient

    if client is None:
        async with LLMClient(model, base_url, answers=answers, prompts=prompts) as opened:
            yield opened
        return
    if base_url is not None or answers is not None:
        raise ValueError("give base_url and answers to the client, not beside it")
    if client.model != model and model != DEFAULT_MODEL:
        raise ValueError(f"the client is for {client.model!r}, not for {model!r}")
    yield client
