"""From a hospital's files to patches: scan, volumes, labels, cohort, cache, sampling."""
