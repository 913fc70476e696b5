"""Commands that check a store or convert it to another form."""

from typing import Annotated

import typer

from interp_embed.cli.arguments import StoredDtype, StorePath

__all__ = ["compact", "convert", "index", "verify"]


def verify(store: StorePath) -> None:
    """Read every byte of a store and check it.

    The exit code is 1 if anything is damaged.
    """
    from interp_embed.cli.commands.upkeep import run_verify

    if not run_verify(store):
        raise typer.Exit(1)


def compact(store: StorePath) -> None:
    """Merge the small chunks of a store.

    Also deletes what killed runs left behind. Nothing else may encode into the store meanwhile;
    reading is fine.
    """
    from interp_embed.cli.commands.upkeep import run_compact

    run_compact(store)


def index(
    store: StorePath,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Delete the existing index and build a new one.")
    ] = False,
    memory: Annotated[
        str, typer.Option(help="Memory that the process should stay within, such as 2GiB.")
    ] = "1GiB",
) -> None:
    """Index a store by feature.

    Finding the documents of a feature then takes a few reads instead of a pass over the store.
    Documents that are already indexed stay indexed. Encoding and reading may continue meanwhile.
    """
    from interp_embed.cli.commands.upkeep import run_index

    run_index(store, rebuild=rebuild, memory=memory)


def convert(
    old: Annotated[
        str, typer.Argument(metavar="OLD", help="A pickle of the original library, or a store.")
    ],
    new: Annotated[
        str, typer.Argument(metavar="NEW", help="A store; a pickle if it ends in .pkl or .pickle.")
    ],
    dtype: Annotated[
        StoredDtype | None,
        typer.Option(help="Dtype of the stored activations. [default: as in OLD]"),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace NEW.")] = False,
) -> None:
    """Convert a pickle to a store, or back.

    A store can also be copied to another dtype. Pickles are read without running anything they contain.

    A pickle keeps neither why documents failed nor which ones were truncated. When a pickle is read
    back, a failed document counts as not encoded yet, unless it has no text.
    """
    from interp_embed.cli.commands.upkeep import run_convert

    run_convert(old, new, dtype=None if dtype is None else dtype.value, overwrite=overwrite)
