"""Federated strategies as values: a recipe says how sites train and how their updates become one model."""
