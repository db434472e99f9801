"""Data -> one HTML file with its styles and its script inside.

Whatever comes from outside (tokens, names, paths, settings) is hostile. Text is escaped
by the template; the data stand in a block that no browser runs, with every character
escaped that could end it; and a content security policy allows this script and these
styles alone, by their hashes, and no request to anywhere.
"""

import base64
import hashlib
from functools import cache
from importlib import resources

import jinja2
import msgspec
from markupsafe import Markup

from bptt.page import words
from bptt.page.data import Page

# In the order in which they build upon each other.
_SCRIPTS = ("basics", "chart", "curves", "lags", "map", "error", "spread", "start")
_TEMPLATE = "page.html"


def html(page: Page) -> str:
    """The whole page, in UTF-8 when it is written."""
    style, script = _style(), _script()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"script-src '{_hash(script)}'",
            f"style-src '{_hash(style)}'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
        )
    )
    return _template().render(
        page=page,
        policy=policy,
        style=Markup(style),  # noqa: S704 - a file of ours
        script=Markup(script),  # noqa: S704 - likewise
        data=embedded(page),
    )


def embedded(page: Page) -> Markup:
    """The data as JSON that cannot end the element it stands in."""
    text = msgspec.json.encode(page).decode()
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - every character that means something is escaped


@cache
def _template() -> jinja2.Template:
    environment = jinja2.Environment(
        loader=jinja2.FunctionLoader(_file),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(words.FILTERS)
    return environment.get_template(_TEMPLATE)


@cache
def _style() -> str:
    return _file("page.css")


@cache
def _script() -> str:
    parts = "".join(_file(f"{name}.js") for name in _SCRIPTS)
    return f"'use strict';\n(() => {{\n{parts}}})();\n"


def _file(name: str) -> str:
    return resources.files("bptt.page").joinpath(name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = hashlib.sha256(text.encode()).digest()
    return f"sha256-{base64.b64encode(digest).decode()}"
