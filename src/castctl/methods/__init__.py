"""The mathematics: pure functions on arrays and tensors, one file a method.

Nothing here opens a file, runs a model or reads a clock.
"""

from castctl.methods.method import MethodSettings, merged
from castctl.methods.presets import PRESETS

__all__ = ["PRESETS", "MethodSettings", "merged"]
