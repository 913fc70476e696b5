"""The same work done by DuckDB over Parquet. Each measurement runs in a process of its own.

DuckDB has as many threads as the store, 8 GB and a temporary folder on the same disk. Its answers
are fetched as Arrow batches and dropped: it is not asked for a CSR matrix, nor for any order. It is
asked for the corpus at once, and for one range of documents after another, which keeps its hash
tables small; the faster counts. The files hold float16, as the store does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from common import best, drop_from_page_cache, folder_size, peak_memory, timed
from million_setting import top_warm

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import pyarrow as pa
    from million_setting import Setting

    from interp_embed.core.chunk import Chunk

_RANGE_DOCUMENTS = 1000
_BATCH = 2**20
_LONG = 30.0  # seconds: what takes longer is not run again


def _write_parquet(path: Path, tables: Iterator[pa.Table]) -> float:
    """Write tables into one file; return the time that writing took without making them."""
    import pyarrow.parquet as pq

    first = next(tables)
    seconds = 0.0
    writer = pq.ParquetWriter(path, first.schema, compression="zstd")
    table: pa.Table | None = first
    while table is not None:
        seconds += timed(writer.write_table, table)[0]
        table = next(tables, None)
    return seconds + timed(writer.close)[0]


def _token_rows(chunk: Chunk) -> pa.Table:
    import pyarrow as pa

    token = np.repeat(np.arange(chunk.n_tokens, dtype=np.int32), np.diff(chunk.token_ptr))
    document = np.repeat(chunk.doc_id.astype(np.int32), np.diff(chunk.doc_ptr))
    return pa.table(
        {
            "document": document[token],
            "token": token,  # within the chunk
            "feature": chunk.feature,
            "activation": chunk.activation.astype(np.float16),
        }
    )


def parquet(setting: Setting) -> dict[str, Any]:
    """Write the nonzeros as rows (document, token, feature, activation) of a zstd Parquet file."""
    path = setting.path("tokens.parquet")

    def produce() -> dict[str, Any]:
        seconds = _write_parquet(path, (_token_rows(chunk) for chunk in setting.corpus.chunks()))
        return {"seconds": seconds, "bytes": folder_size(path), "peak": peak_memory()}

    return setting.remembered("parquet", produce)


def level(setting: Setting) -> dict[str, Any]:
    """Write the document level as rows (document, feature, max), taken from the store."""
    import pyarrow as pa

    from interp_embed import Dataset

    path = setting.path("level.parquet")
    step = setting.corpus.documents_per_chunk
    dataset = Dataset.load_from_file(setting.store)

    def tables() -> Iterator[pa.Table]:
        for start in range(0, setting.n_documents, step):
            matrix = dataset[start : start + step].latents("max", compress=True)
            number = np.arange(start, start + matrix.shape[0], dtype=np.int32)
            yield pa.table(
                {
                    "document": np.repeat(number, np.diff(matrix.indptr)),
                    "feature": matrix.indices.astype(np.uint16),
                    "max": matrix.data.astype(np.float16),
                }
            )

    def produce() -> dict[str, Any]:
        return {"seconds": _write_parquet(path, tables()), "bytes": folder_size(path)}

    return setting.remembered("level", produce)


def _connect(setting: Setting) -> Any:
    import duckdb

    connection = duckdb.connect()
    connection.execute(f"SET threads = {setting.threads}")
    connection.execute("SET memory_limit = '8GB'")
    connection.execute(f"SET temp_directory = '{setting.path('temporary.duckdb')}'")
    connection.execute("SET preserve_insertion_order = false")
    connection.execute("SET parquet_metadata_cache = true")
    connection.execute("SET enable_progress_bar = false")
    return connection


def _drained(connection: Any, query: str) -> int:
    """Fetch an answer batch by batch; return the number of rows."""
    reader = connection.sql(query).to_arrow_reader(_BATCH)
    return sum(batch.num_rows for batch in reader)


def _grouped(value: str, threshold: Callable[[Setting], float] | None = None) -> Callable:
    """Aggregate the tokens of each document and feature."""

    def measure(setting: Setting) -> dict[str, Any]:
        connection = _connect(setting)
        source = f"read_parquet('{setting.path('tokens.parquet')}')"
        above = "" if threshold is None else f"AND activation > {threshold(setting)}"

        def query(where: str) -> str:
            return f"SELECT document, feature, {value} FROM {source} WHERE {where} {above} GROUP BY ALL"

        def in_ranges() -> int:
            return sum(
                _drained(
                    connection, query(f"document >= {a} AND document < {a + _RANGE_DOCUMENTS}")
                )
                for a in range(0, setting.n_documents, _RANGE_DOCUMENTS)
            )

        ranges = best(in_ranges, setting.repeat)
        seconds, entries = timed(lambda: _drained(connection, query("true")))
        if seconds < _LONG:
            again = best(lambda: _drained(connection, query("true")), setting.repeat)
            seconds = min(seconds, again)
        return {
            "seconds": min(seconds, ranges),
            "at once": seconds,
            "in ranges": ranges,
            "entries": entries,
        }

    return measure


def _frequencies(table: str, masked: bool = False) -> Callable:
    """Count the documents of each feature; of the tokens, only distinct documents count."""

    def measure(setting: Setting) -> dict[str, Any]:
        connection = _connect(setting)
        source = f"read_parquet('{setting.path(table)}')"
        if masked:
            wanted = pd.DataFrame({"document": np.flatnonzero(setting.mask).astype(np.int32)})
            connection.register("wanted", wanted)
            source += " SEMI JOIN wanted USING (document)"
        forms = [f"SELECT feature, count(*) AS n FROM {source} GROUP BY feature"]
        if table.startswith("tokens"):
            distinct = f"(SELECT DISTINCT document, feature FROM {source})"
            forms = [
                f"SELECT feature, count(*) AS n FROM {distinct} GROUP BY feature",
                f"SELECT feature, count(DISTINCT document) AS n FROM {source} GROUP BY feature",
            ]
        times = [
            best(lambda form=form: connection.sql(form).fetchall(), setting.repeat)
            for form in forms
        ]
        total = sum(n for _, n in connection.sql(forms[0]).fetchall())
        return {"seconds": min(times), "total": total}

    return measure


def sort(setting: Setting) -> dict[str, Any]:
    """Sort the document level by feature: what serves a top 10."""
    source, target = setting.path("level.parquet"), setting.path("sorted.parquet")

    def produce() -> dict[str, Any]:
        connection = _connect(setting)
        seconds, _ = timed(
            lambda: connection.execute(
                f"COPY (SELECT feature, document, max FROM read_parquet('{source}') "
                f"ORDER BY feature) TO '{target}' (FORMAT parquet, COMPRESSION zstd)"
            )
        )
        return {"seconds": seconds, "bytes": folder_size(target), "peak": peak_memory()}

    return setting.remembered("sort", produce)


_TOP = {
    "tokens.parquet": (
        "SELECT document, max(activation) AS v FROM read_parquet('{path}') WHERE feature = {feature} "
        "GROUP BY document ORDER BY v DESC, document LIMIT 10"
    ),
    "sorted.parquet": (
        "SELECT document, \"max\" AS v FROM read_parquet('{path}') WHERE feature = {feature} "
        "ORDER BY v DESC, document LIMIT 10"
    ),
}
_TOP["level.parquet"] = _TOP["sorted.parquet"]


def _top_cold(table: str, kind: str) -> Callable:
    def measure(setting: Setting) -> dict[str, Any]:
        import duckdb  # noqa: F401  (before the clock)

        path, feature = setting.path(table), setting.features[kind][setting.number]
        drop_from_page_cache(path)
        connected, connection = timed(lambda: _connect(setting))
        query = _TOP[table].format(path=path, feature=feature)
        seconds, _ = timed(lambda: connection.sql(query).fetchall())
        return {"seconds": connected + seconds, "open": connected}

    return measure


def _top_warm(table: str) -> Callable:
    def measure(setting: Setting) -> dict[str, Any]:
        connection, path = _connect(setting), setting.path(table)

        def ask(feature: int) -> list[Any]:
            query = _TOP[table].format(path=path, feature=feature)
            return connection.sql(query).fetchall()

        return top_warm(setting, ask, lambda feature: [float(v) for _, v in ask(feature)])

    return measure


MEASURES: dict[str, Callable[[Setting], dict]] = {
    "parquet write": parquet,
    "parquet document level": level,
    "duckdb sort": sort,
    "duckdb count most": _grouped("count(*)", lambda s: s.most),
    "duckdb count few": _grouped("count(*)", lambda s: s.few),
    "duckdb max": _grouped("max(activation)"),
    "duckdb sum": _grouped("sum(activation)"),
    "duckdb frequencies": _frequencies("tokens.parquet"),
    "duckdb frequencies of a tenth": _frequencies("tokens.parquet", masked=True),
    "duckdb frequencies, document level": _frequencies("level.parquet"),
}
for _name, _table in (
    ("sorted", "sorted.parquet"),
    ("unsorted", "tokens.parquet"),
    ("unsorted document level", "level.parquet"),
):
    MEASURES[f"duckdb top warm, {_name}"] = _top_warm(_table)
    for _kind in ("rare", "common"):
        MEASURES[f"duckdb top cold {_kind}, {_name}"] = _top_cold(_table, _kind)
