"""The page holds its data, and allows nothing but its own script and styles."""

import base64
import hashlib
import html as escaping
import json
import re
from html.parser import HTMLParser

import msgspec
import pytest

from bptt import page
from page import pages


class Reader(HTMLParser):
    """The elements of a page, as a browser takes them apart."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.texts, self.links = [], {}, []
        self._inside = ""
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        kind = dict(attributes).get("type", "")
        self._inside = f"{tag} {kind}".strip()
        for name, value in attributes:
            if name in ("href", "src", "action", "data", "poster", "srcset"):
                self.links.append(value)
            assert name != "style", "the policy would refuse it"
            assert not name.startswith("on"), "the policy would refuse it"

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        self.texts[self._inside] = self.texts.get(self._inside, "") + data


@pytest.fixture(scope="module")
def text(written):
    return written.read_text()


def test_the_data_come_back_as_they_were(text, found):
    block = Reader(text).texts["script application/json"]
    shown = msgspec.json.decode(block, type=page.Page)
    assert shown == page.Page("A page", [pages.run_of(found)])


def test_the_policy_allows_this_script_and_these_styles(text):
    read = Reader(text)
    policy = escaping.unescape(re.search(r'Policy" content="([^"]*)"', text)[1])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    for name, block in (("script-src", "script"), ("style-src", "style")):
        digest = hashlib.sha256(read.texts[block].encode()).digest()
        assert rules[name] == f"'sha256-{base64.b64encode(digest).decode()}'"
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data:"
    assert "unsafe" not in policy


def test_nothing_points_elsewhere(text):
    read = Reader(text)
    assert read.links
    assert all(link.startswith("#") or link == "data:," for link in read.links)
    for block in ("script", "style"):
        code = read.texts[block].replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|fetch\(|XMLHttp", code)
        assert not re.search(r"innerHTML|outerHTML|insertAdjacent|eval\(|Function\(",
                             code)  # fmt: skip
    assert not {"iframe", "object", "embed", "img", "base", "form"} & set(read.tags)


def test_the_data_cannot_end_their_element():
    hostile = "</script><!--<script>\u2028\u2029&lt;\\u003c"
    run = page.RunData(name=hostile, settings=[(hostile, hostile)])
    block = str(page.render.embedded(page.Page(hostile, [run])))
    assert not re.search("[<>&\u2028\u2029]", block)
    assert json.loads(block)["runs"][0]["settings"] == [[hostile, hostile]]


def test_it_is_small(text):
    assert len(text) < 150_000


def test_words():
    number, percent = page.words.number, page.words.percent
    shown = [number(v) for v in (0, 0.12345, 12.345, 1234.5, 1e-5, 2.5e7, None)]
    assert shown == ["0", "0.123", "12.3", "1,234", "1.00e-05", "2.50e+07", "–"]
    assert [percent(v) for v in (0.0512, 0.5, 1.5, 250)] == [
        "5.1\xa0%", "50\xa0%", "150\xa0%", "250 times"
    ]  # fmt: skip


def test_groups_of_lags_hold_all(found):
    run = pages.run_of(found)
    rows = page.words.lags(run.flow)
    assert [row[0] for row in rows] == [
        "0",
        "1",
        "2 to 3",
        "4 to 7",
        "8 to 15",
        "16 to 23",
    ]
    assert sum(row[1] for row in rows) == pytest.approx(1)
    assert [row[2] for row in rows] == [
        run.flow.biases[last] for last in (0, 1, 3, 7, 15, 23)
    ]
