"""The command line: `biofx inspect` and `biofx export`."""

from biofx.cli.main import main

__all__ = ["main"]
