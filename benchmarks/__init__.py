"""What is asserted of a model, one file an experiment. In an installed wheel: `pytest --pyargs clipbench.benchmarks`."""
