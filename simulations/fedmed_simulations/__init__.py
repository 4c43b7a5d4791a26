"""Whole federations on one machine, through the same ServerApp and ClientApp that hospitals run."""
