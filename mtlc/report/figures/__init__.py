"""The charts of the reports, as SVG."""
