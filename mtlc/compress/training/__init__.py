"""Trains and fine-tunes: the loop, batch-norm statistics, and rounding to INT8 while training."""
