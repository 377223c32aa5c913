import pytest

from trainer.report.environment import page_environment


def test_a_page_cannot_replace_a_filter_that_shared_templates_use():
    with pytest.raises(ValueError, match="all pages have a filter figure"):
        page_environment(filters={"figure": str})
