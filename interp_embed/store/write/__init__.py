"""What makes and changes a store: creation, commits, compaction, joining."""
