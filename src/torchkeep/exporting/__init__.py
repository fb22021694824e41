"""Exporting: a model as a graph that runs without its class, beside its weights or with them in one file."""

from .graph import load_graph as load_graph
from .leaving import export as export
