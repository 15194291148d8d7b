"""Figures and how certain they are: metrics, intervals, paired tests."""
