"""The settings of questions about features: the model, the prompts, and the samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from interp_embed.llm.ask.prompt_files import Prompts
from interp_embed.llm.ask.request import check_settings
from interp_embed.llm.samples.choice import Choice

if TYPE_CHECKING:
    import os
    from collections.abc import Mapping

__all__ = ["Asking", "read_prompts"]


@dataclass(frozen=True, slots=True)
class Asking:
    """The common settings of all questions of one kind.

    Parameters
    ----------
    model : str
        Name of the language model.
    choice : Choice
        The choice of samples.
    prompts : Prompts
        The package's by default.
    settings : mapping
        Parameters of the request; see `check_settings`.

    Raises
    ------
    TypeError, ValueError
        If an argument is invalid.
    """

    model: str
    choice: Choice = field(default_factory=Choice)
    prompts: Prompts = field(default_factory=Prompts)
    settings: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.model, str) or not self.model.strip():
            raise ValueError(f"model must be the name of a model, got {self.model!r}")
        check_settings(self.settings)

    def version(self, prompt: str) -> str:
        """Return the version of one of the prompts."""
        return self.prompts.version(prompt)


def read_prompts(given: str | os.PathLike[str] | Prompts | None) -> Prompts:
    """Return the prompts of a folder, or the package's."""
    return given if isinstance(given, Prompts) else Prompts(given)
