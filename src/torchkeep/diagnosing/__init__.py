"""Reading a run as a practitioner would: signs, one verdict with its evidence, and what to try."""

from .examine import examine as examine
