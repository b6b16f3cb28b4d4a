"""Judging: references, intervals, paired tests and the verdicts made of them. Imports no torch."""
