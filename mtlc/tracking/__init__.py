"""Tells experiment trackers, such as MLflow and TensorBoard, how a run gets on and what it found."""
