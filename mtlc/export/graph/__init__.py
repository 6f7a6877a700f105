"""Lowers a program to ONNX and cuts it into a trunk and a head per task."""
