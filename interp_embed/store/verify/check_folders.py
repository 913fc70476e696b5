"""Checking the folders of arrays: their objects, their groups' documents, and that Zarr decodes them."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from interp_embed.store.verify.check_arrays import Arrays, decode, metadata_differs
from interp_embed.store.verify.check_objects import Objects

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["GROUP", "Folders", "group_document"]

GROUP = {"zarr_format": 3, "node_type": "group"}


def group_document(attributes: Mapping[str, Any]) -> bytes:
    """Return the document of a Zarr group as it is always written."""
    return json.dumps({**GROUP, "attributes": dict(attributes)}, indent=1).encode()


class Folders(Objects):
    """The folders of a store."""

    def folder(self, owner: str, folder: Mapping[str, Any]) -> tuple[Arrays, dict[str, Any]]:
        """Read a folder whole; return its sound arrays, decoded, and its group's attributes."""
        base, objects = folder["key"], folder["objects"]
        held: dict[str, bytes] = {}
        for relative, (size, sha256) in objects.items():
            key = f"{base}/{relative}"
            data = self.get(key)
            if data is None:
                continue
            if len(data) != size:
                self.error(key, f"has {len(data)} bytes, {owner} says {size}")
            elif hashlib.sha256(data).hexdigest() != sha256:
                self.error(key, f"does not have the SHA-256 that {owner} says")
            else:
                held[relative] = data
        self.unnamed(base, owner)
        attributes = self.structure(owner, folder, held)
        return self._decoded(owner, folder, held), attributes

    def structure(
        self, owner: str, folder: Mapping[str, Any], held: Mapping[str, bytes]
    ) -> dict[str, Any]:
        """Check that the folder's objects are those of its arrays, and their groups' documents."""
        names = {"zarr.json"}
        for name, entry in folder["arrays"].items():
            names |= {f"{name}/zarr.json"} | ({f"{name}/c/0"} if entry["length"] else set())
            parts = name.split("/")
            groups = {"/".join([*parts[:i], "zarr.json"]) for i in range(1, len(parts))}
            names |= groups
            for group in groups & set(held):
                if held[group] != group_document({}):
                    self.error(f"{folder['key']}/{group}", "is not the document of a Zarr group")
        if names != set(folder["objects"]):
            odd = sorted(names ^ set(folder["objects"]))
            self.error(owner, f"its arrays and its objects do not fit together: {odd[0]}")
        if "zarr.json" not in held:
            return {}
        document = json.loads(held["zarr.json"])
        attributes = document.pop("attributes", {})
        if document != GROUP:
            self.error(f"{folder['key']}/zarr.json", "is not the document of a Zarr group")
        self._shard_indexes(folder, attributes.pop("shard_indexes", {}))
        return dict(attributes)

    def _shard_indexes(self, folder: Mapping[str, Any], stated: Mapping[str, str]) -> None:
        """Compare what a group says of its shards' indexes with the shards."""
        large = {n for n, entry in folder["arrays"].items() if entry["length"] > entry["inner"]}
        for name in sorted(large & set(stated)):
            entry, key = folder["arrays"][name], f"{folder['key']}/{name}/c/0"
            length = 16 * -(-entry["length"] // entry["inner"]) + 4  # offset and size each; crc32c
            try:
                found = self.storage.get_range(key, entry["size"] - length, length)
            except OSError:
                continue  # the shard is reported for itself
            if base64.b64encode(found).decode() != stated[name]:
                self.error(f"{folder['key']}/zarr.json", f"says another index of {name} than {key}")
        for name in sorted(large ^ set(stated)):
            self.error(
                f"{folder['key']}/zarr.json",
                f"should {'' if name in large else 'not '}say the index of the shard of {name}",
            )

    def _decoded(self, owner: str, folder: Mapping[str, Any], held: Mapping[str, bytes]) -> Arrays:
        arrays: Arrays = {}
        for name, entry in folder["arrays"].items():
            key = f"{folder['key']}/{name}"
            mine = {r: data for r, data in held.items() if r.startswith(f"{name}/")}
            if len(mine) != (2 if entry["length"] else 1):
                continue  # an object of it is damaged, and reported
            if entry["length"] and len(mine[f"{name}/c/0"]) != entry["size"]:
                self.error(owner, f"says two sizes of {name}/c/0")
            if why := metadata_differs(json.loads(mine[f"{name}/zarr.json"]), entry):
                self.error(f"{key}/zarr.json", f"{why}, unlike what {owner} says")
            try:
                arrays[name] = decode(name, mine)
            except Exception as error:  # noqa: BLE001 - any failure of a codec is a finding
                self.error(f"{key}/c/0", f"Zarr cannot decode it: {error!r}")
        return arrays
