"""OpenVINO IR of a bundle's programs."""
