"""How updates become one, one rule a file."""
