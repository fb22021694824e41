"""Making models from files: the only place where classes that a file names are looked up, and only trusted ones."""

from .load import load_model as load_model
from .load import plan_model as plan_model
from .skeleton import Skeleton as Skeleton
