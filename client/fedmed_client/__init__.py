"""The site: reads a hospital's data, trains and evaluates on it, and lets only declared values leave."""
