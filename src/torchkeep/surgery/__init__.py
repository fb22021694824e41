"""Changing single layers of a model for another task: a head for other classes, a stem for other channels."""

from .layers import Change
from .resizing import adapt_input, resize_head

__all__ = ["Change", "adapt_input", "resize_head"]
