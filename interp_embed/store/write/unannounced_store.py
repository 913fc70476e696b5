"""A store that readers do not see before it is complete."""

from __future__ import annotations

from typing import TYPE_CHECKING

from typing_extensions import override

from interp_embed.errors import StoreExistsError
from interp_embed.store.format.layout import ROOT, SAVING
from interp_embed.store.storage.wrapped import WrappedStorage

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Unannounced"]


class Unannounced(WrappedStorage):
    """A storage whose root has another name until `announce` is called.

    A store that is written through it can be read through it, and by nobody else. So an interrupted
    save is recognised, and continues where it was.
    """

    def _place(self, key: str) -> str:
        return SAVING if key == ROOT else key

    @override
    def get(self, key: str) -> bytes:
        return super().get(self._place(key))

    @override
    def get_range(self, key: str, start: int, length: int) -> bytes:
        return super().get_range(self._place(key), start, length)

    @override
    def size(self, key: str) -> int:
        return super().size(self._place(key))

    @override
    def put(self, key: str, data: bytes) -> None:
        super().put(self._place(key), data)

    @override
    def put_if_absent(self, key: str, data: bytes) -> bool:
        return super().put_if_absent(self._place(key), data)

    @override
    def list(self, prefix: str = "") -> Iterator[tuple[str, int]]:
        for key, size in super().list(prefix):
            yield (ROOT if key == SAVING else key), size

    @override
    def delete(self, key: str) -> None:
        super().delete(self._place(key))

    def is_announced(self) -> bool:
        """Return whether it is already a store, so that only the other name is left to delete."""
        try:
            return self.inner.get(ROOT) == self.inner.get(SAVING)
        except FileNotFoundError:
            return False

    def announce(self) -> None:
        """Make it a store.

        Raises
        ------
        StoreExistsError
            If another store was written here meanwhile.
        """
        root = self.inner.get(SAVING)
        if not self.inner.put_if_absent(ROOT, root) and self.inner.get(ROOT) != root:
            raise StoreExistsError(
                f"another store was written to {self.url} meanwhile; save this one elsewhere"
            )
        self.inner.delete(SAVING)
