"""What is done with the global model when it is about to be measured, one method a file."""
