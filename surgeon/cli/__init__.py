"""The command line, ``surgeon``: inspect, prune, apply, verify, report, export, bench, plan."""

from surgeon.cli.app import app, main

__all__ = ["app", "main"]
