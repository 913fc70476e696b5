"""The commands and their arguments, one module per group; the modules they import do the work.

Annotations are read by typer when it builds a command, so these modules do not postpone them.
"""
