"""Warnings that a rule's own tests are about, and no others'."""

import pytest


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ignored = pytest.mark.filterwarnings("ignore:dale_axis=:UserWarning")
    for item in items:
        if "dale-post" in item.name:
            item.add_marker(ignored)
