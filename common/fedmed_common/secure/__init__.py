"""Secure aggregation: what sites and server both compute. The server learns the sum, and nothing of a single site.

The protocol is that of Bonawitz et al. 2017, 'Practical secure aggregation for privacy-preserving machine learning' (CCS), with
the key agreement of curve X25519, masks of ChaCha20, shares by Shamir's scheme, and fixed-point numbers modulo 2^32.
"""
