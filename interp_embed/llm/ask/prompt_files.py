"""The prompts, which are text files, and a user's replacements for them.

A file is a `string.Template`: ``$name`` is replaced, ``$$`` is a dollar sign. Inserted text is not
expanded again, so that it cannot contain placeholders.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

__all__ = ["TASKS", "Prompts"]

TASKS = ("label", "score", "detection", "fuzzing")
_COMMON = frozenset({"left", "right", "fence"})
_NEEDED = {
    "label_system": frozenset[str](),
    "label_user": frozenset({"positive", "negative", "previous"}),
    "score_system": frozenset[str](),
    "score_user": frozenset({"label", "sample"}),
    "detection_system": frozenset[str](),
    "detection_user": frozenset({"label", "samples"}),
    "fuzzing_system": frozenset[str](),
    "fuzzing_user": frozenset({"label", "samples"}),
    "repair": frozenset({"problem"}),
}
_DIGITS = 12


class Prompts:
    """The prompts of this package, some of them replaced by a user's.

    Parameters
    ----------
    folder
        A folder with any of ``label_system.txt``, ``label_user.txt``, the same for ``score``,
        ``detection`` and ``fuzzing``, and ``repair.txt``. Missing files are taken from the package.

    Raises
    ------
    FileNotFoundError
        If there is no such folder.
    ValueError
        If it has none of these files or an unknown text file, or if a file has an unknown placeholder
        or lacks a required one.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        shipped = files("interp_embed.llm") / "prompts"
        self._texts = {
            name: (shipped / f"{name}.txt").read_text(encoding="utf-8") for name in _NEEDED
        }
        if folder is not None:
            self._texts.update(_read_folder(Path(folder)))
        self._templates = {name: Template(text) for name, text in self._texts.items()}

    def __repr__(self) -> str:
        versions = ", ".join(f"{task} {self.version(task)}" for task in TASKS)
        return f"Prompts({versions})"

    def text(self, name: str) -> str:
        """Return the text of a prompt file, for example ``"label_system"``."""
        return self._texts[name]

    def template(self, name: str) -> Template:
        """Return a prompt as a template."""
        return self._templates[name]

    def version(self, task: str) -> str:
        """Return 12 hex digits that change when a prompt of a task changes.

        Parameters
        ----------
        task : {"label", "score", "detection", "fuzzing"}
        """
        if task not in TASKS:
            raise ValueError(f"task must be one of {', '.join(TASKS)}, got {task!r}")
        hashed = hashlib.sha256()
        for name in (f"{task}_system", f"{task}_user", "repair"):
            text = self._texts[name].encode()
            hashed.update(f"{name} {len(text)}\n".encode() + text)
        return hashed.hexdigest()[:_DIGITS]


def _read_folder(folder: Path) -> dict[str, str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"prompts: there is no folder {str(folder)!r}")
    known = ", ".join(f"{name}.txt" for name in _NEEDED)
    found = {}
    for path in sorted(folder.glob("*.txt")):
        if path.stem not in _NEEDED:
            raise ValueError(f"{path} is not a prompt; the prompts are {known}")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not in UTF-8: {error}") from None
        _check(path, text)
        found[path.stem] = text
    if not found:
        raise ValueError(f"prompts: {str(folder)!r} has none of {known}")
    return found


def _check(path: Path, text: str) -> None:
    template, needed = Template(text), _NEEDED[path.stem]
    allowed = needed | (frozenset() if path.stem == "repair" else _COMMON)
    if not template.is_valid():
        raise ValueError(f"{path} has a $ without a placeholder; write $$ for a dollar sign")
    present = set(template.get_identifiers())
    if unknown := sorted(present - allowed):
        raise ValueError(
            f"{path} has the unknown placeholder ${unknown[0]}; it may have "
            f"{', '.join('$' + name for name in sorted(allowed)) or 'none'}"
        )
    if lacking := sorted(needed - present):
        raise ValueError(f"{path} needs the placeholder ${lacking[0]}")
