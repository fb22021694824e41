"""Reading a run as a practitioner would: signs, one verdict with its evidence, and what to try."""

from .diagnose import diagnose as diagnose
from .diagnose import understood as understood
from .examine import examine as examine
