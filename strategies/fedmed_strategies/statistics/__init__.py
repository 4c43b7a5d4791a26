"""Sums over a site's training patients, one a file: each says what one patient adds, and how much that is at most."""
