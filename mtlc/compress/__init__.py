"""Compression passes, the training loop they share, and the pipeline that runs and checks them."""
