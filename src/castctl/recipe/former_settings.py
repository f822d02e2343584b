"""The recipe of an older run in today's settings, so that the run can go on."""

from __future__ import annotations

from typing import Any

from castctl.methods.correction import of_cap


def of_today(tree: dict[str, Any]) -> dict[str, Any]:
    """A run's recipe with the settings of today that do the same; what is no recipe stays as it is,
    to be refused by those who read it."""
    method, sampling = tree.get("method"), tree.get("sampling")
    if isinstance(method, dict) and "importance_cap" in method:
        method = dict(method)
        tree = tree | {"method": {"correction": of_cap(method.pop("importance_cap")), **method}}
    if isinstance(sampling, dict):
        # Where it was true, training refuses the truncation itself.
        kept = {key: value for key, value in sampling.items() if key != "allow_truncated"}
        tree = tree | {"sampling": kept}
    return tree
