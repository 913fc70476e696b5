"""Commands that look at the contents of a store."""

from typing import Annotated

import typer

from interp_embed.cli.arguments import By, StorePath

__all__ = ["info", "top"]


def info(
    store: StorePath,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show the contents of a store and its size."""
    from interp_embed.cli.commands.info import run_info

    run_info(store, as_json=json)


def top(
    store: StorePath,
    feature: Annotated[int, typer.Argument(metavar="FEATURE", min=0, help="Feature index.")],
    k: Annotated[int, typer.Option("-k", min=1, help="Number of documents.")] = 10,
    lowest: Annotated[bool, typer.Option("--lowest", help="Show the weakest active ones.")] = False,
    by: Annotated[By, typer.Option(help="How tokens are aggregated.")] = By.max,
) -> None:
    """Show the documents in which a feature is strongest."""
    from interp_embed.cli.commands.top import run_top

    run_top(store, feature, k=k, lowest=lowest, by=by.value)
