"""Numbers that others published, made again with this project's recipes on the data that the user has."""
