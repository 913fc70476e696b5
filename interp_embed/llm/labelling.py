"""Labelling features with a language model: one feature, or many."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from interp_embed.core.checks import check_features, check_positive
from interp_embed.core.progress import show_progress
from interp_embed.llm.defaults import DEFAULT_MODEL, DEFAULT_RETRIES, DEFAULT_TIMEOUT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence

    import numpy as np
    from numpy.typing import NDArray

    from interp_embed.labels.record import FeatureLabel
    from interp_embed.llm import Answers, FeatureLabelResponse, LLMClient
    from interp_embed.llm.asking import Asking
    from interp_embed.llm.bulk.plan import BulkAsking, Estimate, Work
    from interp_embed.llm.bulk.result import BulkLabels
    from interp_embed.llm.samples.samples import Samples
    from interp_embed.llm.score import Method
    from interp_embed.store.labels.collection import LabelStore
    from interp_embed.store.labels.paid_answers import Answers as StoredAnswers

__all__ = [
    "Connection",
    "Kept",
    "Limits",
    "ask_feature_label",
    "ask_feature_labels",
    "ask_feature_score",
    "estimate_feature_labels",
    "require_packages",
]


def require_packages(*others: str) -> None:
    """Raise ImportError, saying what to install, if a package that asking needs is missing."""
    try:
        for name in ("openai", "pydantic", "tenacity", *others):
            import_module(name)
    except ImportError as error:
        raise ImportError(
            f"labelling needs the package {error.name}: pip install 'interp_embed[llm]'",
            name=error.name,
        ) from error


# ---- One feature ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Connection:
    """The connection to a server.

    Attributes
    ----------
    client : LLMClient or None
        An open client, instead of the other attributes.
    base_url, timeout, max_retries, answers
        See `LLMClient`.
    """

    base_url: str | None = None
    timeout: float = DEFAULT_TIMEOUT
    max_retries: int = DEFAULT_RETRIES
    answers: Answers | None = None
    client: LLMClient | None = None

    @asynccontextmanager
    async def opened(self, asking: Asking) -> AsyncIterator[LLMClient]:
        """Open a client, or check and use the given one."""
        from interp_embed.llm import LLMClient

        client = self.client
        if client is None:
            async with LLMClient(
                asking.model,
                self.base_url,
                timeout=self.timeout,
                max_retries=self.max_retries,
                answers=self.answers,
                prompts=asking.prompts,
            ) as opened:
                yield opened
            return
        if self.base_url is not None or self.answers is not None:
            raise ValueError("base_url and answers must be given to the client, not beside it")
        if (self.timeout, self.max_retries) != (DEFAULT_TIMEOUT, DEFAULT_RETRIES):
            raise ValueError("timeout and max_retries must be given to the client, not beside it")
        if asking.model not in (client.model, DEFAULT_MODEL):
            raise ValueError(f"client must be for {asking.model!r}, got one for {client.model!r}")
        yield client


async def ask_feature_label(
    positive: Samples,
    negative: Samples,
    feature: int,
    asking: Asking,
    connection: Connection,
    *,
    k: int,
    label_and_score: Mapping[str, Any] | None,
) -> FeatureLabelResponse:
    """Ask what a feature stands for; see `Dataset.label_feature`."""
    from interp_embed.llm.label import ask_label, label_task

    async with connection.opened(asking) as client:
        own = replace(asking, model=client.model)
        task = await asyncio.to_thread(
            label_task, positive, negative, feature, own, k=k, label_and_score=label_and_score
        )
        return await ask_label(client, task)


async def ask_feature_score(
    positive: Samples,
    negative: Samples,
    feature: int,
    label: str,
    asking: Asking,
    connection: Connection,
    *,
    k: int,
    method: Method,
) -> dict[str, Any]:
    """Ask how well a label says where a feature is active; see `Dataset.score_feature`."""
    from interp_embed.llm.judging import ask_score
    from interp_embed.llm.score import score_task

    async with connection.opened(asking) as client:
        own = replace(asking, model=client.model)
        task = await asyncio.to_thread(
            score_task, positive, negative, feature, label, own, k=k, method=method
        )
        return await ask_score(client, task)


# ---- Many features -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of labelling many features; see `Dataset.label_features`.

    Raises
    ------
    ValueError
        If an argument is invalid.
    """

    max_concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    max_tokens: int | None = None
    max_cost: float | None = None
    prices: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        from interp_embed.llm.bulk.budget import check_limit, check_prices

        for name in ("requests_per_minute", "tokens_per_minute", "max_tokens", "max_cost"):
            check_limit(name, getattr(self, name))
        check_prices(self.prices, self.max_cost)
        check_positive(max_concurrency=self.max_concurrency)


@dataclass(frozen=True, slots=True)
class Kept:
    """The existing labels and answers of features, and which features occur.

    Attributes
    ----------
    labels : LabelStore
        The store that labels are added to.
    answers : StoredAnswers
        The store of answers.
    occurring : callable
        Returns for each feature whether it occurs.
    width : int
        Number of features.
    """

    labels: LabelStore
    answers: StoredAnswers
    occurring: Callable[[], NDArray[np.bool_]]
    width: int

    def work(self, features: Iterable[int] | None, asking: BulkAsking) -> list[Work]:
        """Return the work to do; see `plan_work`."""
        from interp_embed.llm.bulk.plan import plan_work

        if features is not None:
            given = dict.fromkeys(check_features(features, self.width).tolist())
            return plan_work([*given], None, (), asking)
        return plan_work(None, self.occurring(), self.known(), asking)

    def known(self) -> list[FeatureLabel]:
        """Return the labels that were added, including those of other processes."""
        self.labels.refresh()
        return self.labels.added()


async def ask_feature_labels(
    samples: Samples,
    scored: Samples,
    features: Sequence[int] | None,
    asking: BulkAsking,
    connection: Connection,
    limits: Limits,
    kept: Kept,
    *,
    progress: bool | None,
) -> BulkLabels:
    """Ask what many features stand for, and keep the labels; see `Dataset.label_features`."""
    from interp_embed.llm.bulk.budget import Budget, check_prices
    from interp_embed.llm.bulk.budgeted_client import BulkClient
    from interp_embed.llm.bulk.plan import estimate
    from interp_embed.llm.bulk.result import bulk_result
    from interp_embed.llm.bulk.run import BulkRun

    paid = check_prices(limits.prices, limits.max_cost)
    client = BulkClient(
        asking.model,
        connection.base_url,
        budget=Budget(limits.max_tokens, limits.max_cost, paid),
        requests_per_minute=limits.requests_per_minute,
        tokens_per_minute=limits.tokens_per_minute,
        concurrency=limits.max_concurrency,
        timeout=connection.timeout,
        max_retries=connection.max_retries,
        answers=kept.answers,
        prompts=asking.asking.prompts,
    )
    work = await asyncio.to_thread(kept.work, features, asking)
    expected = await asyncio.to_thread(estimate, samples, scored, work, asking, kept.answers, paid)
    shown = show_progress() if progress is None else progress
    if shown:
        tqdm.write(str(expected), file=sys.stderr)
    async with client:
        run = BulkRun(
            samples,
            scored,
            work,
            asking,
            client,
            known=kept.labels.added(),
            add=kept.labels.add,
            concurrency=limits.max_concurrency,
            progress=shown,
        )
        stopped = await run.run()
    for pack in (kept.labels.pack, kept.answers.pack):
        # All is committed, whether or not it can be tidied up: where nothing may be deleted, say.
        with suppress(OSError):
            await asyncio.to_thread(pack)
    return bulk_result(run.outcomes, stopped, expected, asking.methods, client)


def estimate_feature_labels(
    samples: Samples,
    scored: Samples,
    features: Sequence[int] | None,
    asking: BulkAsking,
    prices: tuple[float, float] | None,
    kept: Kept,
) -> Estimate:
    """Return the approximate usage of `ask_feature_labels`; see `Dataset.estimate_labels`."""
    from interp_embed.llm.bulk.budget import check_prices
    from interp_embed.llm.bulk.plan import estimate

    paid = check_prices(prices, None)
    work = kept.work(features, asking)
    return estimate(samples, scored, work, asking, kept.answers, paid)
