"""Asking a language model what features stand for, and how well a label says it.

Owns prompts, examples, requests and what is made of their answers. Knows data sets by their documents
and activations, and nothing of how anything is stored. openai and pydantic are imported by the modules
that use them, so that importing this package costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from interp_embed.llm.ask.answers import Answers
    from interp_embed.llm.ask.client import LLMClient, Usage
    from interp_embed.llm.ask.errors import (
        AnswersNotKeptError,
        LLMAnswerError,
        LLMAuthenticationError,
        LLMConnectionError,
        LLMError,
        LLMRateLimitError,
        LLMStatusError,
        LLMTimeoutError,
    )
    from interp_embed.llm.ask.prompt_files import Prompts
    from interp_embed.llm.ask.request import Request
    from interp_embed.llm.ask.schemas import (
        FeatureLabelResponse,
        ScoredSample,
        SingleSampleScoringResponse,
    )

__all__ = [
    "Answers",
    "AnswersNotKeptError",
    "FeatureLabelResponse",
    "LLMAnswerError",
    "LLMAuthenticationError",
    "LLMClient",
    "LLMConnectionError",
    "LLMError",
    "LLMRateLimitError",
    "LLMStatusError",
    "LLMTimeoutError",
    "Prompts",
    "Request",
    "ScoredSample",
    "SingleSampleScoringResponse",
    "Usage",
]

_HOME = {
    "Answers": "ask.answers",
    "FeatureLabelResponse": "ask.schemas",
    "LLMClient": "ask.client",
    "Prompts": "ask.prompt_files",
    "Request": "ask.request",
    "ScoredSample": "ask.schemas",
    "SingleSampleScoringResponse": "ask.schemas",
    "Usage": "ask.client",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'ask.errors')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
