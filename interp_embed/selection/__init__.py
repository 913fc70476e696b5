"""Which documents of a store, in which order, and their rows."""
