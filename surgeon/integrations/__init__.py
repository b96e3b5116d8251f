"""Pruners inside of training frameworks; each module imports its own."""
