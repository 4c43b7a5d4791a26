"""Sites drawn from pooled cases: who gets which patients, and which classes a site lacks."""

from fedmed_simulations.partition.draw import Drawn, draw_sites

__all__ = ["Drawn", "draw_sites"]
