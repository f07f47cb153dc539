"""Command line: Typer app, flags made from settings, one file per command."""
