"""Tasks: the table of steps that a job may name, and what runs them. The only importers of distilabel."""
