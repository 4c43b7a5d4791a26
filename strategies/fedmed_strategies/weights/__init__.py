"""How much each site's update counts, one way a file."""
