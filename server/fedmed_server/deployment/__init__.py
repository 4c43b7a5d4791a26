"""The server of a federation of hospitals: Flower behind a guard, runs that survive faults, the commands."""
