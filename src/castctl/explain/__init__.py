"""What a recipe will do before it does it: work, memory, settings."""
