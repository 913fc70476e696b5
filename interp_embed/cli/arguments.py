"""Arguments and options that several commands have, and the choices of some."""

from enum import Enum
from typing import Annotated

import typer

__all__ = [
    "SAE_HELP",
    "By",
    "Description",
    "Device",
    "Dtype",
    "Field",
    "Judge",
    "Log",
    "Sae",
    "StorePath",
    "StoredDtype",
]


class StoredDtype(Enum):
    """Dtypes of stored activations."""

    float32 = "float32"
    float16 = "float16"


class Log(Enum):
    """Ways to report progress."""

    bar = "bar"
    json = "json"
    none = "none"


class Judge(Enum):
    """Ways to score a label."""

    detection = "detection"
    fuzzing = "fuzzing"
    reference = "reference"


class By(Enum):
    """Ways to reduce a document's tokens to one number."""

    max = "max"
    mean = "mean"
    sum = "sum"
    count = "count"


SAE_HELP = (
    "embedded, RELEASE/SAE_ID of SAELens, goodfire:VARIANT, the URL of 'serve-sae', a folder in "
    "SAELens's format, or module:factory, where factory() returns an SAE."
)

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of a store.")]
Device = Annotated[
    str,
    typer.Option(help="Device for the models: cpu, cuda:0, ..., or auto (a GPU if there is one)."),
]
Sae = Annotated[str, typer.Option(help=SAE_HELP)]
Field = Annotated[str, typer.Option(help="Column that holds the text.")]
Dtype = Annotated[StoredDtype, typer.Option(help="Dtype of the stored activations.")]
Description = Annotated[str, typer.Option(help="Free text that is kept in the store.")]
