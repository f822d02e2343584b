"""The recipe: every setting of a run, read, checked and written back."""
