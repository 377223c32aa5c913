"""The peer's job: a function that does nothing."""


def noop() -> bool:
    return True
