"""Converts a bundle's programs to OpenVINO IR."""
