"""A released model at a hospital: applied to new studies, its result written as the hospital's viewers read it."""
