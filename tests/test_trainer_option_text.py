"""The options of a run in words."""

import pytest

from trainer.specs.option_text import option_text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"), (True, "yes"), (False, "no"), (0.5, "0.5"), ([128, 256], "128, 256"),
        ({"low": 1e-05, "high": 0.01, "log": True, "points": 5}, "1e-05 to 0.01 on a log scale"),
        ({"low": 0.0, "high": 0.6, "log": False, "points": 7}, "0.0 to 0.6, 7 points"),
        ({"a": True, "b": 1}, "a yes; b 1"),
    ],
    ids=str,
)  # fmt: skip
def test_the_value_of_an_option_is_said_in_words(value: object, text: str) -> None:
    assert option_text(value) == text
