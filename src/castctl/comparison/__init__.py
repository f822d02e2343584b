"""Comparisons: recipes trained with several seeds, and finished runs, measured side by side."""
