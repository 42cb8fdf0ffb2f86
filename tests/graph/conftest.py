"""What several files of tests share: the graph of the notes' network, and a browser."""

import itertools

import pytest
from chromium import Browser

from jaxnn.graph import trace
from jaxnn.graph._page import page

pytest.register_assert_rewrite("graphs")  # before the import, so that a failed `check` shows its values


@pytest.fixture(scope="session")
def notes():
    from graphs import FILTERS, IMAGE, LABEL, ROWS, notes_network

    return trace(notes_network, FILTERS, ROWS, IMAGE, LABEL)


@pytest.fixture(scope="session")
def browser(tmp_path_factory):
    made = Browser(tmp_path_factory.mktemp("profile"))
    yield made
    made.close()


@pytest.fixture
def browse(browser, tmp_path):
    """Open a graph's page, run `script` in it, and return what that returns. The page must raise and log nothing."""
    number = itertools.count()

    def run(data, script, fragment="", width=1200):
        path = tmp_path / f"page{next(number)}.html"
        path.write_text(page(data), encoding="utf-8")
        browser.open(path, fragment, width)
        found = browser.run(script)
        assert browser.complaints() == []
        return found

    return run
