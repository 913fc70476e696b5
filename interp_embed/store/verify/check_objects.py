"""Reading the objects of a store one by one, and what is found wrong with them.

As all of the verifier, shares no code with what writes or reads the format.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

    from interp_embed.store.storage import Storage

__all__ = ["Objects", "Problem"]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something that is not as it should be.

    Attributes
    ----------
    key : str
        The object, relative to the store.
    what : str
        What is wrong with it.
    severity : {"error", "note"}
        A note is no damage: documents that are not encoded yet, objects that a killed run left.
    """

    key: str
    what: str
    severity: Literal["error", "note"] = "error"

    def __str__(self) -> str:
        return f"{self.severity}: {self.key}: {self.what}"


class Objects:
    """The objects of a store: which there are, which were looked at, and what is wrong."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage
        self.problems: list[Problem] = []
        self.present: dict[str, int] = {}
        self.in_folder: dict[str, list[str]] = {}
        self.expected: set[str] = set()

    def error(self, key: str, what: str) -> None:
        """Report damage."""
        if key.startswith("index/"):
            what += ". The index can be made again from the chunks: interp-embed index --rebuild"
        self.problems.append(Problem(key, what))

    def note(self, key: str, what: str) -> None:
        """Report what is no damage."""
        self.problems.append(Problem(key, what, "note"))

    def guarded(self, key: str, check: Callable[[], None]) -> None:
        """Run a check; one that cannot even be carried out is a problem as well."""
        try:
            check()
        except Exception as error:  # noqa: BLE001 - whatever it is, the rest is to be checked too
            self.error(key, f"cannot be checked: {error!r}")

    def get(self, key: str) -> bytes | None:
        """Return the bytes of an object; none, and it is reported, where they cannot be read."""
        self.expected.add(key)
        try:
            return self.storage.get(key)
        except FileNotFoundError:
            self.error(key, "is missing")
        except OSError as error:
            self.error(key, f"cannot be read: {error}")
        return None

    def exact(self, key: str, expected: bytes) -> None:
        """Check that an object is what is always written there."""
        data = self.get(key)
        if data is not None and data != expected:
            self.error(key, "is not what is always written there")

    def json_object(self, key: str, data: bytes) -> dict[str, Any] | None:
        """Read a JSON object."""
        try:
            document = json.loads(data)
        except ValueError as error:
            self.error(key, f"is not JSON: {error}")
            return None
        if not isinstance(document, dict):
            self.error(key, "is not a JSON object")
            return None
        if not _as_written(document, data):
            self.error(key, "is JSON, but not byte for byte as it was written")
        return document

    def sealed(self, key: str) -> dict[str, Any] | None:
        """Read a JSON object that carries the SHA-256 of itself."""
        data = self.get(key)
        document = None if data is None else self.json_object(key, data)
        return None if document is None else self.open_seal(key, document)

    def open_seal(self, key: str, document: dict[str, Any]) -> dict[str, Any] | None:
        """Take the checksum out of an object that carries one, and check it."""
        if not isinstance(claimed := document.pop("checksum", None), str):
            self.error(key, "has no checksum")
            return None
        canonical = json.dumps(document, sort_keys=True, separators=(",", ":"))
        if hashlib.sha256(canonical.encode()).hexdigest() != claimed:
            self.error(key, "does not match its checksum")
            return None
        return document

    def hashed(self, key: str, owner: str, size: int, sha256: str) -> bytes | None:
        """Check the hash of an object of any size; return its bytes if they are few, else none."""
        self.expected.add(key)
        state, found, data = hashlib.sha256(), 0, b""
        try:
            for block in self.storage.blocks(key):
                state.update(block)
                found += len(block)
                data = block if found == len(block) else b""
        except FileNotFoundError:
            self.error(key, "is missing")
            return None
        except OSError as error:
            self.error(key, f"cannot be read: {error}")
            return None
        if found != size:
            self.error(key, f"has {found} bytes, {owner} says {size}")
        elif state.hexdigest() != sha256:
            self.error(key, f"does not have the SHA-256 that {owner} says")
        else:
            return data
        return None

    def unnamed(self, folder: str, owner: str) -> None:
        """Report the objects of a folder that its owner does not name."""
        for key in self.in_folder.get(folder, []):
            if key not in self.expected:
                self.expected.add(key)
                self.error(key, f"is in a folder of {owner}, which does not name it")


def _as_written(document: dict[str, Any], data: bytes) -> bool:
    """Whether bytes are a document compact but for line breaks, or indented by one space."""
    compact = json.dumps(document, separators=(",", ":")).encode()
    return data.replace(b"\n", b"") == compact or data == json.dumps(document, indent=1).encode()
