"""Exporting: a model as a graph that runs without its class, beside its weights or with them in one file."""

from .leaving import export as export
