"""Benchmarks: every op of the registry, and one step of the model, against the public forms.

`vidk bench` is the command; `run.py` times ops, `end_to_end.py` the model, `compare.py` two runs.
"""
