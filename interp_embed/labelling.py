"""A selection of documents, and what a language model says that all of its features stand for."""

from __future__ import annotations

import asyncio
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal

from interp_embed.inputs import check_positive
from interp_embed.labelling_one import (
    DEFAULT_MODEL,
    DEFAULT_RETRIES,
    DEFAULT_TIMEOUT,
    FeatureLabelling,
    chosen_dataset,
    read_prompts,
    require_packages,
)
from interp_embed.progress import show_progress

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping, Sequence

    from interp_embed.activations import Activations
    from interp_embed.llm import Prompts
    from interp_embed.llm.bulk_labels import BulkLabels
    from interp_embed.llm.bulk_plan import Asking, Estimate, Work
    from interp_embed.llm.score import Method

__all__ = ["Labelling"]


class Labelling(FeatureLabelling):
    """Some documents of a store, and what their features stand for."""

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
        timeout: float = DEFAULT_TIMEOUT,
        max_retries: int = DEFAULT_RETRIES,
        progress: bool | None = None,
    ) -> BulkLabels:
        """Ask a language model what many features stand for, and keep its labels in the store.

        Answers and labels are on disk as they come, so this may be interrupted or killed anywhere: the
        same call goes on, and pays for no request again whose answer is kept. See
        docs/how-to/label-features.md.

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
            See `label_feature`.
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
        require_packages("aiolimiter")
        from interp_embed.llm.budget import Budget, check_limit, check_prices
        from interp_embed.llm.bulk import BulkRun
        from interp_embed.llm.bulk_client import BulkClient
        from interp_embed.llm.bulk_labels import bulk_result
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
        scored = chosen_dataset(self, "scored_on", scored_on)
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
        for pack in (self._store.labels.pack, self._store.answers.pack):
            # All is committed, whether or not it can be tidied up: where nothing may be deleted, say.
            with suppress(OSError):
                await asyncio.to_thread(pack)
        return bulk_result(run.outcomes, stopped, expected, asking.methods, client)

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
        require_packages()
        from interp_embed.llm.budget import check_prices
        from interp_embed.llm.bulk_plan import estimate

        paid = check_prices(prices, None)
        asking = _asking(
            model, score, k=k, score_k=score_k, seed=seed, examples=examples, negatives=negatives,
            window_tokens=window_tokens, prompts=prompts, settings=settings,
        )  # fmt: skip
        scored = chosen_dataset(self, "scored_on", scored_on)
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

    return Asking(
        model=model, methods=check_methods(score), prompts=read_prompts(prompts), **choice
    )
