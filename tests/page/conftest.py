import pytest

from page import pages


@pytest.fixture(scope="module")
def chromium():
    with pages.browser() as opened:
        yield opened


@pytest.fixture
def watched(chromium):
    """A page that must not have complained when the test ends."""
    with pages.watched(chromium) as found:
        yield found
    assert found.said == []


@pytest.fixture(scope="module")
def found():
    return pages.flows()


@pytest.fixture(scope="module")
def written(found, tmp_path_factory):
    return pages.write(tmp_path_factory.mktemp("page") / "a.html", pages.run_of(found))
