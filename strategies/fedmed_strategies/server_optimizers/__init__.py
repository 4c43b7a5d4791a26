"""How the combined update moves the global model, one optimizer a file."""
