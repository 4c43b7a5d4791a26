"""What changes the steps of a site's training against drift, one method a file with both its halves."""
