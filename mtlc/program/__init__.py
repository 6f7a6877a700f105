"""The program: a network with its tasks, example inputs and history, and the surgery that passes did on it."""
