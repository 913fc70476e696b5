"""The command line as a whole: its options and its commands, in the order of the help."""

from typing import Annotated

import typer

from interp_embed.cli.signatures.encoding import (
    append,
    demo,
    encode,
    finish,
    merge,
    plan,
    serve_sae,
)
from interp_embed.cli.signatures.labelling import label, labels
from interp_embed.cli.signatures.reading import info, top
from interp_embed.cli.signatures.upkeep import compact, convert, index, verify

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


for _command in (
    demo, encode, plan, finish, append, merge, serve_sae, info, top, labels, label, verify, compact,
    index, convert,
):  # fmt: skip
    app.command()(_command)
