"""Commands for the labels of features."""

from typing import Annotated

import typer

from interp_embed.cli.arguments import Judge, StorePath

__all__ = ["label", "labels"]


def labels(
    store: StorePath,
    feature: Annotated[
        list[int] | None,
        typer.Option("--feature", "-f", min=0, help="Only this feature; may be repeated."),
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
            help="With --import: the source to record. 'given' ranks before all other sources."
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option(
            metavar="MODEL/LAYER", help="With --import of Neuronpedia's files: the SAE to import."
        ),
    ] = None,
    from_tokens: Annotated[
        bool,
        typer.Option("--from-tokens", help="Name features by the words they prefer."),
    ] = False,
    write: Annotated[
        str | None,
        typer.Option("--export", metavar="PATH", help="Write labels to a .json or .csv file."),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="Every label, not only the best one per feature.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List the labels of features, add labels, or write them to a file.

    Reads JSON, CSV and the explanations that Neuronpedia exports. Labels in the store are never
    replaced. If a feature has several labels, the best one is shown.
    """
    if read is None and (source is not None or only is not None):
        raise typer.BadParameter("--source and --only need --import")
    from interp_embed.cli.commands.labels import run_labels

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


def label(
    store: StorePath,
    features: Annotated[
        str | None,
        typer.Option(
            metavar="LIST",
            help="Features such as 1,5-9. [default: active ones without a label of this model]",
        ),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="openai/NAME with the key in OPENAI_API_KEY. Any other name is OpenRouter's, with the "
            "key in OPENROUTER_API_KEY."
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
        typer.Option(help="Also score the labels; may be repeated."),
    ] = None,
    samples: Annotated[
        int, typer.Option("-k", min=1, help="Samples with the feature, and samples without it.")
    ] = 20,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice of samples.")] = 0,
    prompts: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Prompts in place of the package's.")
    ] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests in flight at most.")] = 8,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", help="Time limit of one attempt at a request.")
    ] = 120.0,
    retries: Annotated[
        int,
        typer.Option(min=0, help="Attempts after the first if the server is slow or fails."),
    ] = 4,
    requests_per_minute: Annotated[
        float | None, typer.Option(help="As many as the server allows.")
    ] = None,
    tokens_per_minute: Annotated[
        float | None, typer.Option(help="As many as the server allows.")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option(min=1, help="Stop before more tokens are used.")
    ] = None,
    max_cost: Annotated[
        float | None, typer.Option(help="Stop before more US dollars are spent; needs --prices.")
    ] = None,
    prices: Annotated[
        str | None,
        typer.Option(
            metavar="IN,OUT",
            help="US dollars per million tokens of prompts and of answers, such as 0.30,2.50.",
        ),
    ] = None,
    estimate: Annotated[
        bool, typer.Option("--estimate", help="Print an estimate and send nothing.")
    ] = False,
) -> None:
    """Ask a language model what features stand for, and keep the labels in the store.

    After an interruption, run the same command again; answers that came are not paid for again. The
    exit code is 1 if a limit on tokens or cost ends the run, or if every feature fails.
    """
    from interp_embed.cli.commands.label import read_features, read_prices, run_label

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
        "timeout": timeout,
        "max_retries": retries,
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
