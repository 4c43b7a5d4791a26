"""Sites at work in other processes, on this machine or on a Ray cluster: who does what when, and what becomes of the lost."""
