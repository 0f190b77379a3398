"""Configurations: JSON, YAML and command-line overrides on one side, methods, models and streams on the other."""
