"""The passes that a job can name, a file each, and the registry that lists them."""
