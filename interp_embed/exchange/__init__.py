"""Import and export: planning, opening, saving and joining stores; labels and their files."""
