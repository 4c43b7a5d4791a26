"""What changes the images that a network sees, one method a file."""
