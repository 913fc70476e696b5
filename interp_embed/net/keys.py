"""Keys of servers: read from the environment when they are needed, and never shown."""

from __future__ import annotations

import os

__all__ = ["read_key", "without_key"]


def read_key(variable: str) -> str | None:
    """Return the key in an environment variable; None if it is not set or is empty.

    Raises
    ------
    ValueError
        If it cannot be sent in a header. The message does not repeat it.
    """
    # No variable here holds the key where an error is raised: some tracebacks show variables.
    if not os.environ.get(variable, "").strip():
        return None
    if not all("!" <= character <= "~" for character in os.environ[variable].strip()):
        # An HTTP library would say so with the key in its message.
        raise ValueError(
            f"the key in {variable} has characters that an HTTP header cannot hold (spaces, line "
            "breaks, or characters outside ASCII); set it to the key alone"
        )
    return os.environ[variable].strip()


def without_key(text: str, key: str | None, least: int = 1) -> str:
    """Return a text from which every repetition of the key is removed.

    A key of fewer than ``least`` characters is not a secret but a word such as "none", which is used
    for servers without keys.
    """
    return text if key is None or len(key) < least else text.replace(key, "[key]")
