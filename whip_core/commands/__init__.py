"""The command line's own commands; the siblings bring theirs by entry point."""
