"""Other projects' ways in: CLMixer's files, Lightning's and Arena's flags, Hydra's entry point."""
