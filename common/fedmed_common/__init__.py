"""What every part of fedmed shares: configuration, the wire, parameters, metrics, errors, models and tasks.

A leaf: it knows no server and no client.
"""
