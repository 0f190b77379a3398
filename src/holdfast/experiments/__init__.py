"""The former name of `holdfast.runs`; only `python -m holdfast.experiments.hydra_main` is left, for one release."""
