"""Creating and changing a store: creation, commits, compaction, joining."""
