"""The commands as users write them, a module per group; `interp_embed.cli.commands` has what they do.

Annotations are read by typer when it builds a command, so these modules do not postpone them.
"""
