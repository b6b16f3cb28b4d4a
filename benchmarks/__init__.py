"""What is asserted of a model, one file an experiment: that it is measured, and that each reference which speaks of it holds.

In an installed wheel: `pytest --pyargs clipbench.benchmarks`.
"""
