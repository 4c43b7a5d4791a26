"""Attacks on a run's own settings: what its privacy is worth, measured from below. ``fedmed audit``."""
