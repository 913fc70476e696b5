"""The format on disk: names, dtypes, columns, checksums. It does not know how anything is read."""
