"""Asking a language model what features stand for, and scoring the labels.

Owns prompts, examples, requests and the treatment of answers. Knows the documents and activations of
data sets, but not how anything is stored. openai and pydantic are imported by the modules that use
them, so that importing this package costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import lazy_loader

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

__getattr__, __dir__, _ = lazy_loader.attach(
    __name__,
    submod_attrs={
        "ask.answers": ["Answers"],
        "ask.client": ["LLMClient", "Usage"],
        "ask.errors": [
            "AnswersNotKeptError",
            "LLMAnswerError",
            "LLMAuthenticationError",
            "LLMConnectionError",
            "LLMError",
            "LLMRateLimitError",
            "LLMStatusError",
            "LLMTimeoutError",
        ],
        "ask.prompt_files": ["Prompts"],
        "ask.request": ["Request"],
        "ask.schemas": ["FeatureLabelResponse", "ScoredSample", "SingleSampleScoringResponse"],
    },
)
