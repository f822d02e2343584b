"""What is on disk of a run, read back as plain values: nothing is written, no model is loaded."""

from typing import Literal

Coloring = Literal["advantage", "gap", "weight"]
"""What the tokens of a sample can be coloured by."""
