"""Proving that a loop resumes exactly: it runs whole, and again killed and resumed, and both are compared."""

from .prove import prove_resume

__all__ = ["prove_resume"]
