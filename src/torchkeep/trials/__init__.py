"""Trying out ways of training: paired splits and seeds, equal budgets, and what each gave."""
