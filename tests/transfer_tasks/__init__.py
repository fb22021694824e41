"""Real transfer tasks: published networks, real data, and what a choice of training is worth on them.

`nets` has the networks, `data` the examples, `tasks` the tasks, `grid` trains every candidate on each, and `proof` sets
what the library chooses beside the best of the grid. `python tests/prove.py transfer` runs it all.
"""
