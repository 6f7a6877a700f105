"""Compresses networks: the passes, the training loop that they share, and the pipeline that runs and checks them."""
