"""What stays at a site, one method a file."""
