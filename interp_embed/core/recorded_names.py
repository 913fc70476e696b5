"""Names under which stores record classes of SAEs, for names that have changed.

A store says in its fingerprint, and in what it keeps to build its SAE again, of which class the SAE
is. That name is part of the format; where a class lives in the library is not. Earlier versions recorded
the module that each class was in.
"""

from __future__ import annotations

__all__ = ["FORMER_NAMES", "current_name"]

FORMER_NAMES = {
    "interp_embed.sae.local:LocalSAE": "interp_embed.sae:LocalSAE",
    "interp_embed.sae.goodfire:GoodfireSAE": "interp_embed.sae:GoodfireSAE",
    "interp_embed.sae.goodfire_api:GoodfireApiSAE": "interp_embed.sae:GoodfireApiSAE",
    "interp_embed.sae.http:HttpSAE": "interp_embed.sae:HttpSAE",
    "interp_embed.testing.saes:ReplaySAE": "interp_embed.testing:ReplaySAE",
}
"""Names recorded today, by the names recorded before. Entries are added and never removed."""


def current_name(recorded: str) -> str:
    """Return the name under which a class is recorded today, given any of its recorded names."""
    return FORMER_NAMES.get(recorded, recorded)
