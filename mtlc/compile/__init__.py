"""One function for each verb of the command line, each in the module of the verb's name. A verb's imports are its own:
``infer`` and ``doctor`` need the base install only.
"""
