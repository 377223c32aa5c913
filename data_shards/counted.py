"""A count with its noun, for lines that people read."""


def counted(count: int, noun: str) -> str:
    """Return a count with its noun, such as "1 image" or "1,200 images"."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
