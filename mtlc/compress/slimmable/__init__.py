"""Networks that run at many widths: how they are built, trained, measured and searched."""
