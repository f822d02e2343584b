"""A run on disk: its folder and the prompts of its steps."""
