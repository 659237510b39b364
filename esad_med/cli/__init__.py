"""The `esad-med` command: parse, call one function, print where the result lies."""

from esad_med.cli.app import main

__all__ = ["main"]
