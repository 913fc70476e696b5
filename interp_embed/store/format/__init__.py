"""The format on disk: names, dtypes, columns, checksums. Knows nothing of how anything is read."""
