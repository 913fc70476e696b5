"""A verifier based on the format's description and plain Zarr. It shares no code with the writer."""
