"""A hospital's home folder, and the commands that its people run there."""
