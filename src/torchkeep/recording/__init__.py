"""Keeping what a model is made of: the kinds of its modules, what they hold, and how they were constructed."""

from .architecture import Recorded as Recorded
from .architecture import architecture_of as architecture_of
from .code import changed_methods as changed_methods
from .code import code_of as code_of
from .constructing import recorded as recorded
from .factories import Factory as Factory
from .factories import factory_of as factory_of
