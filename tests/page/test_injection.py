"""Hostile tokens, names, settings and paths stay text, in a real browser."""

from bptt import page
from page import pages
from page.payloads import PAYLOADS

STEPS = 100


def test_there_are_enough():
    assert len(set(PAYLOADS)) >= 295


def hostile(found, name, payloads):
    """A run in which every text is a payload."""
    texts = [payloads[i % len(payloads)] for i in range(STEPS + 1)]
    return pages.run_of(
        found,
        name=name,
        lines=payloads,
        notes=payloads[:3],
        text=payloads[0],
        facts=[(text, text) for text in payloads],
        settings=[(text, text) for text in payloads],
        versions=[(text, text) for text in payloads],
        command=" --".join(payloads),
        reading=pages.reading(found.flows[0], texts),
        activity=[page.Histogram(t, 1, 0, 1, [1, 2], 0.5, 0, 0, 0) for t in texts[:4]],
        samples=[page.Sample(0.5, text) for text in payloads],
    )


def shown(text):
    """As HTML keeps it: carriage returns are new lines, and no NUL."""
    return text.replace("\r\n", "\n").replace("\x00", "")


def test_no_payload_is_more_than_text(watched, tmp_path):
    found = pages.flows(STEPS, batches=1)
    for at in range(0, len(PAYLOADS), STEPS):
        some = PAYLOADS[at : at + STEPS]
        # Two runs, so that the table and the key of several are there too.
        runs = [hostile(found, name, some) for name in (some[0], some[-1])]
        path = pages.write(tmp_path / f"{at}.html", *runs)
        watched.open(path)
        view = watched.view
        assert watched.said == [], some
        assert view.title() == "A page"
        assert view.locator("article").count() == 2
        # As many elements as there are for harmless text, and none of another kind.
        for forbidden in ("iframe", "img", "object", "base", "form", "video", "math"):
            assert view.locator(forbidden).count() == 0
        assert view.locator("script").count() == 2
        tokens = view.locator("article").first.locator(".token").all_text_contents()
        expected = [some[i % len(some)] for i in range(STEPS + 1)]
        for token, text in zip(tokens, expected, strict=True):
            signs = {" ": "␣", "\n": "⏎", "\t": "⇥"}
            assert token == "".join(signs.get(c, c) for c in text)
        samples = view.locator("article").first.locator(".sample").all_text_contents()
        assert samples == [shown(text) for text in some if text]
        # Choosing such a token says it, and no more.
        view.locator(".token").nth(STEPS).dispatch_event("click")
        assert "was predicted" in view.locator('[data-told="text"]').first.inner_text()
        assert watched.said == [], some
