"""A label as a record: what was said of a feature, by whom, and how well it holds."""
