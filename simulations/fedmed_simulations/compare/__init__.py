"""A fair comparison of strategies on one machine: ``fedmed compare``."""
