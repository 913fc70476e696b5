"""`interp-embed info`."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

from interp_embed.cli.facts import StoreFacts, open_store, read_facts, thousands
from interp_embed.core.memory import format_bytes

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["run_info", "size_lines"]

_LONGEST_NAME = 200


def run_info(path: str, *, as_json: bool) -> None:
    """Print the contents of a store, as text or as JSON."""
    facts = read_facts(open_store(path))
    print(json.dumps(_plain(facts), indent=1) if as_json else "\n".join(_lines(facts)))


def _plain(facts: StoreFacts) -> dict[str, Any]:
    return {
        **asdict(facts),
        "total_bytes": facts.total_bytes,
        "token_level_bytes_per_nonzero": facts.token_level_bytes_per_nonzero,
        "bytes_per_nonzero": facts.bytes_per_nonzero,
    }


def _lines(facts: StoreFacts) -> list[str]:
    rows = [
        ("documents", _documents(facts)),
        ("tokens", f"{thousands(facts.tokens)} ({thousands(facts.special_tokens)} special)"),
        ("nonzeros", _nonzeros(facts)),
        ("features", "unknown" if facts.d_sae is None else thousands(facts.d_sae)),
        ("dtype", facts.dtype),
        ("SAE", _sae(facts)),
        ("columns", ", ".join(_column(c, facts) for c in facts.columns)),
        ("chunks", thousands(facts.chunks)),
        ("index", _index(facts)),
        ("made", f"{facts.created}, id {facts.id}, format {facts.format_version}"),
    ]
    if facts.description:
        rows.insert(0, ("description", facts.description))
    return [facts.path, *_aligned(rows), *size_lines(facts)]


def _documents(facts: StoreFacts) -> str:
    others = {
        "failed": facts.failed,
        "not encoded yet": facts.missing,
        "cut at the context length": facts.truncated,
    }
    extra = ", ".join(f"{thousands(n)} {what}" for what, n in others.items() if n)
    return thousands(facts.documents) + (f" ({extra})" if extra else "")


def _index(facts: StoreFacts) -> str:
    if not facts.indexed:
        return "none"
    if facts.indexed == facts.documents - facts.missing:
        return "complete"
    return f"of {thousands(facts.indexed)} documents; 'interp-embed index' adds the others"


def _nonzeros(facts: StoreFacts) -> str:
    if not facts.tokens:
        return thousands(facts.nonzeros)
    return f"{thousands(facts.nonzeros)} ({facts.nonzeros / facts.tokens:.1f} per token)"


def _sae(facts: StoreFacts) -> str:
    name = _name(facts.sae)
    if "url" not in facts.sae and not facts.served:
        return f"{name}, on {facts.model}" if facts.model else name
    parts = []
    if served := facts.served:
        hook = served.get("hook_name")
        width = served.get("d_sae", facts.d_sae)
        parts = [
            _name(served),
            *([f"on {_shown(facts.model)}"] if facts.model else []),
            *([f"at {_shown(hook)}"] if hook else []),
            *([f"{thousands(width)} features"] if isinstance(width, int) else []),
        ]
    where = f" at {_without_secrets(facts.sae['url'])}" if "url" in facts.sae else ""
    return ", ".join([*parts, f"{'behind ' if parts else ''}{name}{where}"])


def _name(sae: Mapping[str, Any]) -> str:
    """Return what an SAE is called in what was recorded of it, or else its class."""
    names = [_shown(sae[n]) for n in ("release", "sae_id", "variant_name") if sae.get(n)]
    kind = _shown(sae.get("sae_class", sae.get("class", "unknown")))
    if kind.startswith("interp_embed."):
        kind = kind.rpartition(":")[2]
    return " ".join(names) if names and set(names) != {"folder"} else kind


def _shown(value: object) -> str:
    """Return what somebody else may have written as a few words in one line."""
    line = " ".join("".join(c if c.isprintable() else " " for c in str(value)).split())
    return line if len(line) <= _LONGEST_NAME else f"{line[:_LONGEST_NAME]}…"


def _without_secrets(url: object) -> str:
    """Return a URL without what may be a key; none is recorded, but a record may be anybody's."""
    try:
        parts = urlsplit(str(url))
        host = parts.netloc.rpartition("@")[2]
        return _shown(urlunsplit((parts.scheme, host, parts.path, "", "")))
    except ValueError:
        return "a URL that cannot be read"


def _column(name: Any, facts: StoreFacts) -> str:
    return f"{name} (the text)" if name == facts.field else str(name)


def size_lines(facts: StoreFacts) -> list[str]:
    """Return a table of the room that the parts of a store take."""
    rows = [("on disk", "bytes", "per nonzero")]
    parts = {name: size for name, size in facts.bytes.items() if size or name != "index"}
    for name, size in [*parts.items(), ("total", facts.total_bytes)]:
        share = f"{size / facts.nonzeros:.2f}" if facts.nonzeros else ""
        rows.append((f"  {name}", format_bytes(size), share))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [f"  {a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]


def _aligned(rows: Sequence[tuple[str, str]]) -> list[str]:
    width = max(len(name) for name, _ in rows)
    return [f"  {name:<{width}}  {value}" for name, value in rows]
