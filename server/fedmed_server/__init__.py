"""The coordinator: rounds, cohort, gate, checkpoints, tracking and reports. Never imports the client."""
