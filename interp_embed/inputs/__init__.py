"""Reading the data that a caller passes in pieces of bounded size, and checks before any work."""

from interp_embed.inputs.checks import check_rows, check_sae
from interp_embed.inputs.frames import MissingFieldError, as_frame
from interp_embed.inputs.sources import Documents, as_documents

__all__ = [
    "Documents",
    "MissingFieldError",
    "as_documents",
    "as_frame",
    "check_rows",
    "check_sae",
]
