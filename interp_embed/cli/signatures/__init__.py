"""The commands and their arguments, a module for each group; what they do is in the modules they import.

Annotations are read by typer when it builds a command, so these modules do not postpone them.
"""
