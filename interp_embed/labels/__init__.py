"""Labels as records: the text for a feature, its source, and its scores."""
