"""The verbs of the command line, a file each: options, one call into `mtlc.workflows`, and what is printed."""
