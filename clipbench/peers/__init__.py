"""clipbench timed against its peers, on the same work: `python -m clipbench.peers` writes the tables."""
