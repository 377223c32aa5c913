"""Kubernetes resource quantities."""

UNITS = {"m": 1e-3, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


def number(quantity: str | int | float) -> float:
    """Return `500m`, `2Gi` or `4` as a number: cores, bytes, count."""
    text = str(quantity)
    unit = next((unit for unit in UNITS if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * UNITS.get(unit, 1)
