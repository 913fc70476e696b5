"""Ways in and out: planning, opening, saving and joining stores; labels and their files."""
