"""Opens a bundle and checks everything in it before anything is run."""
