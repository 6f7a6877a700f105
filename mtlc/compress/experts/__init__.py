"""Records which experts a task uses, works out what dropping one costs, and reports an extraction."""
