"""Does what the verbs of the command line do, callable from Python: a module for each verb.

Each verb's imports are its own, so ``infer`` and ``doctor`` need the base install only.
"""
