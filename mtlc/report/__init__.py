"""The HTML reports of a run, of a network of several widths, and of a comparison."""
