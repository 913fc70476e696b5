"""A verifier that knows the format's description and plain Zarr, and shares no code with the writer."""
