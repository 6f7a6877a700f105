"""What the verbs return: a model for each result, with documented fields and units. JSON and the docs' schemas come from them."""
