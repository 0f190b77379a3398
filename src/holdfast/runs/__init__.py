"""Runs: one configuration becomes one run folder that can be read, compared, resumed and reported."""
