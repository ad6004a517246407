"""The command line: `vidk generate`, `bench`, `env` and `convert`."""

from vidk.cli.main import main

__all__ = ["main"]
