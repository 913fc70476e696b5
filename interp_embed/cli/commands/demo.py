"""`interp-embed demo`: real texts, a real model, a store, and what the store shows about them."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed import Dataset
from interp_embed.analysis import diff
from interp_embed.cli.commands.top import document_lines, markers
from interp_embed.cli.facts import open_store, read_facts, thousands
from interp_embed.cli.hints import telling_words
from interp_embed.cli.interrupts import COMMITTED, says
from interp_embed.cli.saes import best_device, quiet_loading
from interp_embed.core.memory import format_bytes
from interp_embed.data import load_demo
from interp_embed.errors import FingerprintMismatchError
from interp_embed.sae import LocalSAE
from interp_embed.viz.html import FeatureDifference, HighlightedDocument, diff_page

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pandas as pd

__all__ = ["run_demo"]

GROUP_A, GROUP_B = "food", "animal"
_PER_SIDE = 8  # features that lean to one group
_DOCUMENTS = 4  # of each of the leading features, on the page
_HINT_DOCUMENTS = 60
_DESCRIPTION = "400 definitions of foods and animals from WordNet 3.0"
_SOURCE = (
    "The texts are 400 definitions from WordNet 3.0, Copyright 2006 by Princeton University, all rights "
    "reserved, under the WordNet licence. The model is SmolLM2-135M-Instruct, the SAE the one that comes "
    "with interp_embed: TopK 32 of 4,096 features on the output of layer 9."
)


@dataclass(frozen=True, slots=True)
class _Run:
    """What was encoded just now."""

    tokens: int
    seconds: float


def run_demo(folder: str, device: str) -> None:
    """Encode the demo's documents if needed, look at them, and print where the results are."""
    target = Path(folder)
    target.mkdir(parents=True, exist_ok=True)
    texts = load_demo()
    store, page = target / "demo.zarr", target / "index.html"
    print(
        f"{len(texts)} dictionary definitions, {int((texts['group'] == GROUP_A).sum())} of foods "
        f"and {int((texts['group'] == GROUP_B).sum())} of animals: "
        "what does a sparse autoencoder see in them?\n"
    )
    run = _encode(texts, store, device)
    begun = time.perf_counter()
    dataset = Dataset.load_from_file(store)
    opened = time.perf_counter() - begun
    differences = compare(dataset)
    _print_differences(differences)
    _print_documents(dataset, differences[0])
    _print_numbers(store, run)
    begun = time.perf_counter()
    dataset.top_documents_for_feature(differences[0].feature)
    searched = time.perf_counter() - begun
    print(
        f"opened in {1000 * opened:.0f} ms; found the 10 documents in which a feature is strongest in "
        f"{1000 * searched:.0f} ms"
    )
    page.write_text(_page(dataset, differences), encoding="utf-8")
    print(f"\nStore     {store}\nWeb page  {page}  (open it in a browser)")
    print(f"More      interp-embed info {store}")
    print(f"          interp-embed top {store} {differences[0].feature}")


def _encode(texts: pd.DataFrame, store: Path, device: str) -> _Run | None:
    """Encode what the store lacks; return what was done, None where nothing was left to do."""
    sae = LocalSAE.embedded()
    try:
        before = Dataset(texts, sae, _DESCRIPTION, save_path=store, compute_activations=False)
    except FingerprintMismatchError as error:
        error.add_note(f"delete {store} to start again")
        raise
    # Not `filter_na_rows`: a document that failed is tried again too.
    if len(before.filter_na_rows()) == len(before):
        print(f"{store} already has them.")
        return None
    quiet_loading()
    sae.set_device(best_device(device))
    print("Loading SmolLM2-135M-Instruct and the SAE ...", flush=True)
    sae.load()
    print(f"Encoding on {sae.model_device} ...", flush=True)
    begun = time.monotonic()
    try:
        with says(COMMITTED):
            dataset = Dataset(texts, sae, _DESCRIPTION, save_path=store)
    finally:
        sae.destroy()
    return _Run(dataset.token_count - before.token_count, time.monotonic() - begun)


def compare(dataset: Dataset) -> list[FeatureDifference]:
    """Return the features that differ most in either direction, from most ``GROUP_A`` to most B.

    Each comes with its label and with the words that it is most telling of in these documents.
    """
    group = dataset.pandas()["group"].to_numpy()
    table = diff(dataset[group == GROUP_A], dataset[group == GROUP_B], k=None)
    ahead = table[table["difference"] > 0].head(_PER_SIDE)
    behind = table[table["difference"] < 0].head(_PER_SIDE)[::-1]
    return [
        FeatureDifference(
            feature=record["feature"],
            label=record["label"],
            share_a=record["share_a"],
            share_b=record["share_b"],
            low=record["low"],
            high=record["high"],
            q_value=record["q_value"],
            tokens=_hint(dataset, record["feature"]),
        )
        for part in (ahead, behind)
        for record in part.to_dict(orient="records")
    ]


def _hint(dataset: Dataset, feature: int) -> list[str]:
    rows = dataset.sort_by_features([feature], include_nonactive_samples=False).rows
    return telling_words([r for r in rows[:_HINT_DOCUMENTS] if r is not None], feature)


def _print_differences(differences: Sequence[FeatureDifference]) -> None:
    print(
        "\nFeatures that tell the two groups apart: the share of documents in which each is active,"
    )
    print("the difference in percentage points with its 95 % interval, and words it is active on\n")
    print(f"  {'feature':>7}  {GROUP_A:>6}  {GROUP_B:>6}  {'difference':<20}  words")
    for d in differences:
        interval = f"{100 * d.difference:+4.0f} [{100 * d.low:+4.0f}, {100 * d.high:+4.0f}]"
        print(
            f"  {d.feature:>7}  {d.share_a:>6.0%}  {d.share_b:>6.0%}  {interval:<20}  "
            f"{', '.join(d.tokens)}"
        )


def _print_documents(dataset: Dataset, chosen: FeatureDifference) -> None:
    print(f"\nDocuments in which feature {chosen.feature} is strongest\n")
    left, right = markers()
    ranked = dataset.sort_by_features([chosen.feature])[:3]
    frame = ranked.pandas()
    for row, word, group, value in zip(
        ranked, frame["word"], frame["group"], frame["feature_activation"], strict=True
    ):
        if row is not None:
            print(f"  {value:5.2f}  {word} ({group})")
            print("\n".join(document_lines(row, chosen.feature, left, right)))


def _print_numbers(store: Path, run: _Run | None) -> None:
    facts = read_facts(open_store(store))
    speed = f", encoded at {run.tokens / run.seconds:,.0f} tokens/s" if run is not None else ""
    print(
        f"\n{thousands(facts.documents)} documents, {thousands(facts.tokens)} tokens, "
        f"{thousands(facts.nonzeros)} activations{speed}"
    )
    print(
        f"{format_bytes(facts.total_bytes)} on disk: "
        f"{facts.token_level_bytes_per_nonzero or 0:.2f} bytes per activation at the token level, "
        f"{facts.bytes_per_nonzero or 0:.2f} including everything else"
    )


def _page(dataset: Dataset, differences: Sequence[FeatureDifference]) -> str:
    group = dataset.pandas()["group"]
    return diff_page(
        "What tells foods from animals",
        differences,
        {d.feature: _highlighted(dataset, d.feature) for d in differences},
        name_a=f"{GROUP_A}s",
        name_b=f"{GROUP_B}s",
        n_a=int((group == GROUP_A).sum()),
        n_b=int((group == GROUP_B).sum()),
        introduction="Dictionary definitions, seen through the features of a sparse autoencoder that "
        "reads the inside of a small language model. Nobody told it about foods or animals. Its "
        "features are named after words that each is active on, and not on most others.",
        source=_SOURCE,
    )


def _highlighted(dataset: Dataset, feature: int) -> list[HighlightedDocument]:
    ranked = dataset.sort_by_features([feature], include_nonactive_samples=False)[:_DOCUMENTS]
    frame = ranked.pandas()
    documents = []
    for row, word, group, value in zip(
        ranked, frame["word"], frame["group"], frame["feature_activation"], strict=True
    ):
        if row is None:  # never: the feature is active in it
            continue
        row.truncate_chat_template = True  # the BOS token in front of every document says nothing
        tokens = list(_spaces_apart(row.token_activations(feature, as_string=False)))
        documents.append(
            HighlightedDocument(
                tokens=[token for token, _ in tokens],
                activations=[activation for _, activation in tokens],
                caption=f"{word}, {value:.2f}",
                group="a" if group == GROUP_A else "b",
            )
        )
    return documents


def _spaces_apart(tokens: Sequence[dict[str, Any]]) -> Iterator[tuple[str, float]]:
    """Split off the space that many tokens begin with, so that only words are shaded."""
    for token in tokens:
        word = token["token"].lstrip()
        if space := token["token"][: len(token["token"]) - len(word)]:
            yield space, 0.0
        if word or not space:
            yield word, token["activation"]
