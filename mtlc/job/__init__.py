"""The job file: its schema, and loading what it names."""
