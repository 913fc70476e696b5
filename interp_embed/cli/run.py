"""Running a command: its exit code, and one clear line per error."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from typing import TYPE_CHECKING, Any

import typer

from interp_embed.cli.app import app
from interp_embed.cli.logs import shown_log

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

__all__ = ["describe", "run"]

# What the library and the system raise on purpose: the message says it all.
_EXPECTED = (
    OSError, ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, MemoryError,
    ImportError,
)  # fmt: skip
_LONGEST = 1000
_EXTRAS = {
    "pyarrow": "io", "httpx": "http", "tenacity": "http", "starlette": "serve", "uvicorn": "serve",
    "openai": "llm", "pydantic": "llm", "aiolimiter": "llm",
}  # fmt: skip
# Recent releases of typer carry a click of their own, so its classes are asked of typer.
_UsageError: Any = typer.BadParameter.__base__


def run(arguments: Sequence[str]) -> int:
    """Run a command and return its exit code; messages go to stderr.

    Parameters
    ----------
    arguments
        The arguments after the program's name. ``--debug`` may stand anywhere among them.
    """
    debug = "--debug" in arguments
    command = typer.main.get_command(app)
    words = [a for a in arguments if a != "--debug"]
    try:
        # Not through main(), which deals with errors and with Ctrl-C in its own way.
        with (
            _plain_warnings(),
            shown_log(),
            command.make_context("interp-embed", words) as context,
        ):
            command.invoke(context)
    except typer.Exit as exit_:
        return exit_.exit_code
    except _UsageError as error:
        error.show()
        return 2
    except KeyboardInterrupt as stop:
        number = getattr(stop, "signal", signal.SIGINT)
        _report(stop, "interrupted" if number == signal.SIGINT else "terminated", debug)
        return 128 + int(number)
    except BrokenPipeError:
        # Whoever read the output has gone. Python would complain of it once more at exit.
        with contextlib.suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001  (the last one who can say it in one line)
        _report(error, f"error: {describe(error)}", debug)
        return 1
    return 0


def describe(error: BaseException) -> str:
    """Return an error as one line for people."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}"
    # The text of a KeyError is the repr of its argument.
    said = error.args[0] if isinstance(error, KeyError) and len(error.args) == 1 else error
    text = " ".join(str(said).split())
    if len(text) > _LONGEST:
        text = f"{text[:_LONGEST].rstrip()}… (--debug shows all of it)"
    if isinstance(error, ImportError):
        return f"{text.rstrip('.')}. {_missing_packages(error)}"
    if isinstance(error, _EXPECTED) and text:
        return text
    return f"{type(error).__name__}: {text}".removesuffix(": ") + " (--debug shows where)"


def _missing_packages(error: ImportError) -> str:
    missing = (error.name or "").partition(".")[0]
    extra = "io" if "pyarrow" in str(error) else _EXTRAS.get(missing, "model")
    return f"This needs the extra {extra!r}: interp_embed[{extra}]"


def _report(error: BaseException, line: str, debug: bool) -> None:
    if debug:
        traceback.print_exception(error)
    print(line, file=sys.stderr)
    for note in getattr(error, "__notes__", ()):
        print(f"note: {' '.join(note.split())}", file=sys.stderr)


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    """Show a warning as a line, without the place in the code that it comes from."""

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        print(f"warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
