"""Where published SAEs, their models and their labels lie. Knows files and hubs; runs no model."""
