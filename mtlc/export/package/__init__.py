"""Makes folders that a board runs as they are: a bundle, the C library, its engine, and what starts them."""
