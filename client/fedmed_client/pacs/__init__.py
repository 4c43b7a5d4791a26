"""The hospital's picture archive: what is searched there, fetched from it, received from it and sent to it."""
