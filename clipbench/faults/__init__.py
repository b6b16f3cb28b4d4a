"""Degraded runs, made for real: what does the gate say of each? `python -m clipbench.faults` writes the table."""
