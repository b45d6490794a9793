"""The golden check: two revisions of this repository train to the same bits.

It knows the scripts and the files that they leave, and nothing of the package behind them, so that it outlives a
redesign of it. `names` has the tables of what was renamed.
"""
