"""Files of labels: our own, tables of others, and Neuronpedia's exports of explanations."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp_embed.core.files import replacing
from interp_embed.inputs.files import find_files
from interp_embed.labels.record import SOURCES, FeatureLabel, Score

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from interp_embed.inputs.files import DocumentFile

__all__ = ["check_writable", "read_labels", "write_labels"]

_FORMAT = "interp_embed.labels"
_VERSION = 1
_COLUMNS = (
    "feature", "label", "brief_description", "detailed_explanation", "source", "model",
    "prompt_version", "seed", "origin", "created", "scores", "examples",
)  # fmt: skip
_TABLES = ("csv", "tsv")
_JSON_COLUMNS = ("scores", "examples")
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
"""The start of a text that a spreadsheet would run. Writing puts an apostrophe before such a text, and
reading removes it. Texts that begin with apostrophes get one more, so that they are read back unchanged."""


def check_writable(path: str) -> None:
    """Check that labels can be written to a file with this name.

    Raises
    ------
    ValueError
        If the name does not end in .json or .csv.
    """
    if Path(path).suffix.lower() not in (".json", ".csv"):
        raise ValueError(f"path must end in .json or .csv, got {path!r}")


def write_labels(path: str, labels: Sequence[FeatureLabel]) -> None:
    """Write labels to a file, completely or not at all; see `Dataset.export_labels`."""
    check_writable(path)
    text = _as_csv(labels) if Path(path).suffix.lower() == ".csv" else _as_json(labels)
    if "://" in path:
        import fsspec

        with fsspec.open(path, "wb") as file:
            file.write(text.encode())
        return
    with replacing(Path(path)) as file:
        file.write(text.encode())


def _as_json(labels: Sequence[FeatureLabel]) -> str:
    value = {
        "format": _FORMAT,
        "version": _VERSION,
        "labels": [label.to_json() for label in labels],
    }
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"


def _as_csv(labels: Sequence[FeatureLabel]) -> str:
    out = io.StringIO()
    # All is quoted: csv leaves a lone carriage return bare, and reads it as the end of a line.
    writer = csv.DictWriter(out, _COLUMNS, lineterminator="\n", quoting=csv.QUOTE_ALL)
    writer.writeheader()
    for label in labels:
        value = {
            k: f"'{v}" if isinstance(v, str) and _FORMULA.match(v) else v
            for k, v in label.to_json().items()
        }
        for name in _JSON_COLUMNS:
            if name in value:
                value[name] = json.dumps(value[name], ensure_ascii=False)
        writer.writerow(value)
    return out.getvalue()


def read_labels(
    path: str, *, source: str | None = None, only: str | None = None
) -> list[FeatureLabel]:
    """Read the labels of one or several files; see `Dataset.import_labels`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If a file has no labels or is not a file of labels. The message names the file and the place.
    """
    if source is not None and source not in SOURCES:
        raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {source!r}")
    if "://" not in path and not set("*?[") & set(path) and not Path(path).exists():
        raise FileNotFoundError(2, "No such file or directory", path)
    found: list[FeatureLabel] = []
    origins: dict[str, None] = {}
    rows = 0
    for file in find_files(path):
        for where, row in _rows_of(file):
            rows += 1
            try:
                labels = list(_labels_of(row if file.format not in _TABLES else _cells(row)))
            except RecursionError:
                raise ValueError(f"{file.path}, {where}: nested too deeply") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{file.path}, {where}: {error}") from error
            for label, origin in labels:
                if only is not None and origin != only:
                    continue
                if origin:
                    origins[origin] = None
                found.append(label if source is None else dataclasses.replace(label, source=source))
    if len(origins) > 1:
        raise ValueError(
            f"{path} has the explanations of several SAEs: {', '.join(list(origins)[:9])}. Choose one "
            "with only=..., because the same feature number means different features in each"
        )
    if not found:
        raise ValueError(
            f"{path} has no labels" + (f" of {only}" if only else "") + f" ({rows} rows were read)"
        )
    return found


def _rows_of(file: DocumentFile) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the rows of a file, each with its place in the file."""
    if file.format == "parquet":
        raise ValueError(
            f"{file.path} is a Parquet file; labels are read only from JSON, JSON Lines and CSV"
        )
    try:
        if file.format in _TABLES:
            yield from _table(file)
        else:
            with file.open_text() as text:
                yield from _json_rows(file, text.read())
    except RecursionError:
        raise ValueError(f"{file.path} is nested too deeply to be a file of labels") from None
    except (UnicodeDecodeError, EOFError, zlib.error) as error:
        raise file.damaged(error) from error


def _table(file: DocumentFile) -> Iterator[tuple[str, Mapping[str, Any]]]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open() as raw, io.TextIOWrapper(raw, "utf-8-sig", newline="") as text:
        reader = csv.DictReader(text, delimiter="\t" if file.format == "tsv" else ",", strict=True)
        names = reader.fieldnames or []
        if not {"feature", "label"} <= set(names) and not {"index", "description"} <= set(names):
            raise ValueError(
                f"{file.path} has the columns {', '.join(names) or '(none)'}; labels need 'feature' "
                "and 'label', or Neuronpedia's 'index' and 'description'"
            )
        if twice := sorted({name for name in names if names.count(name) > 1 and name}):
            raise ValueError(f"{file.path}: columns {twice} occur more than once; rename them")
        try:
            for row in reader:
                yield f"line {reader.line_num}", row
        except csv.Error as error:
            raise ValueError(f"{file.path}, line {reader.line_num}: {error}") from error


def _cells(row: Mapping[Any, Any]) -> dict[str, Any]:
    """Return the non-empty cells of a row as the values that they stand for."""
    values: dict[str, Any] = {k: v for k, v in row.items() if k is not None and v not in ("", None)}
    for name in _JSON_COLUMNS:
        if name in values:
            values[name] = json.loads(values[name])
    if "seed" in values:
        if not re.fullmatch(r"-?[0-9]{1,19}", values["seed"].strip()):
            raise ValueError(f"seed must be an integer, got {values['seed']!r:.80}")
        values["seed"] = int(values["seed"])
    return {
        k: v[1:] if isinstance(v, str) and v.startswith("'") and _FORMULA.match(v) else v
        for k, v in values.items()
    }


def _json_rows(file: DocumentFile, text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        whole = json.loads(text)
    except json.JSONDecodeError as error:
        if not text.lstrip().startswith("{") or "\n" not in text.strip():
            raise file.damaged(error) from error
        # An object a line.
        for number, line in enumerate(text.split("\n"), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as mistake:
                raise ValueError(f"{file.path}, line {number}: {mistake}") from mistake
            yield f"line {number}", _object(file, f"line {number}", row)
        return
    if isinstance(whole, dict):
        if whole.get("format") == _FORMAT and whole.get("version") != _VERSION:
            raise ValueError(
                f"{file.path} has version {whole.get('version')!r} of this format; this release of "
                f"interp_embed reads {_VERSION}: upgrade interp_embed"
            )
        if isinstance(whole.get("labels"), (list, dict)):
            whole = whole["labels"]
        elif isinstance(whole.get("explanations"), list) and "index" not in whole:
            whole = whole["explanations"]
    if isinstance(whole, dict) and whole and all(_is_number(name) for name in whole):
        whole = [{"feature": int(name), "label": label} for name, label in whole.items()]
    for number, row in enumerate(whole if isinstance(whole, list) else [whole]):
        yield f"entry {number}", _object(file, f"entry {number}", row)


def _object(file: DocumentFile, where: str, row: Any) -> Mapping[str, Any]:
    if not isinstance(row, dict):
        raise ValueError(f"{file.path}, {where}: expected a JSON object, got {row!r:.80}")
    return row


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _labels_of(row: Mapping[str, Any]) -> Iterator[tuple[FeatureLabel, str]]:
    """Yield the non-empty labels of a row, each with the SAE that it belongs to, if the row names it."""
    row = {name: value for name, value in row.items() if value is not None}
    if "feature" in row and "label" in row:
        if str(row["label"]).strip():
            feature = _integer(row["feature"], "feature")
            if (named := row.get("source", "import")) not in SOURCES:
                raise ValueError(f"source must be one of {', '.join(SOURCES)}, got {named!r:.80}")
            yield FeatureLabel.from_json({"source": "import", **row, "feature": feature}), ""
    elif "index" in row and isinstance(row.get("explanations"), list):  # a feature of Neuronpedia
        shared: dict[str, Any] = {k: row[k] for k in ("modelId", "layer", "index") if k in row}
        for explanation in row["explanations"]:
            if isinstance(explanation, dict):
                yield from _explanation({**explanation, **shared})
    elif "index" in row and "description" in row:
        yield from _explanation(row)
    elif "feature" in row or "index" in row:
        return  # a feature that nobody explained
    else:
        raise ValueError(
            f"it needs 'feature' and 'label', or Neuronpedia's 'index' and 'description', but its keys "
            f"are {', '.join(map(repr, list(row)[:9])) or '(none)'}"
        )


def _explanation(row: Mapping[str, Any]) -> Iterator[tuple[FeatureLabel, str]]:
    """Yield the label of a row of Neuronpedia's table of explanations, unless the label is empty."""
    text = str(row.get("description") or "").strip()
    if not text:
        return
    sae = "/".join(str(row[name]) for name in ("modelId", "layer") if row.get(name))
    scores = row.get("scores") if isinstance(row.get("scores"), list) else ()
    label = FeatureLabel(
        feature=_integer(row["index"], "index"),
        label=text,
        source="import",
        model=str(row.get("explanationModelName") or ""),
        prompt_version=str(row.get("typeName") or ""),
        origin=f"Neuronpedia {sae}".strip(),
        created=str(row.get("createdAt") or ""),
        scores=tuple(_scores(scores or ())),
    )
    yield label, sae


def _scores(scores: Iterable[Any]) -> Iterator[Score]:
    for score in scores:
        if isinstance(score, dict) and isinstance(score.get("value"), (int, float)):
            yield Score(
                method=str(score.get("explanationScoreTypeName") or "unknown"),
                value=score["value"],
                model=str(score.get("explanationScoreModelName") or ""),
                created=str(score.get("createdAt") or ""),
            )


def _integer(value: Any, name: str) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().isascii() and value.strip().isdigit():
        return int(value)
    raise ValueError(f"{name} must be an integer of at least 0, got {value!r:.80}")
