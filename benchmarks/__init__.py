"""Measurements of prunecli itself, each a module to run; RESULTS.md holds the figures."""
