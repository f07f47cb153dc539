"""The page at `/` in headless Chromium: answers as you type, by keyboard alone, without foreign addresses."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import requests
from support.browser import browser_page, find_browser

PAGE = Path(__file__).resolve().parents[2] / "colakit/serving/page.html"


def test_the_page_names_no_foreign_address_and_labels_every_field() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert not re.search(r"https?://|@import|<link|src=", text)
    fields = set(re.findall(r'<(?:input|select) id="(\w+)"', text))
    assert fields == set(re.findall(r'<label for="(\w+)"', text))
    assert "tabindex" not in text


def test_the_page_forbids_foreign_content(url: str) -> None:
    answer = requests.get(url, timeout=20)
    assert "default-src 'none'" in answer.headers["content-security-policy"]
    assert answer.text == PAGE.read_text(encoding="utf-8")


@pytest.mark.skipif(find_browser() is None, reason="needs Chromium (apt-get install chromium)")
def test_every_model_answers_as_one_types_by_keyboard(url: str, tmp_path: Path) -> None:
    with browser_page(tmp_path / "profile") as page:
        page.open(url)
        page.wait_for("document.querySelectorAll('#answers tr').length == 4")
        assert page.value("document.querySelectorAll('#pair tr').length") == 4
        before = page.value("document.getElementById('answers').innerText")
        page.press("Tab", 9)
        assert page.value("document.activeElement.id") == "sentence"
        page.command("Input.insertText", text="These dogs see the girl")
        page.wait_for("document.querySelectorAll('#words li').length == 5")
        assert page.value("document.getElementById('answers').innerText") != before
        stops = []
        for _ in range(3):
            page.press("Tab", 9)
            stops.append(page.value("document.activeElement.id"))
        assert stops == ["other", "model", "label"]
        page.press("ArrowUp", 38)
        assert page.value("document.getElementById('error').textContent") == ""
        page.command("Network.enable")
        page.command(
            "Network.emulateNetworkConditions",
            offline=True,
            latency=0,
            downloadThroughput=0,
            uploadThroughput=0,
        )
        page.value("document.getElementById('sentence').dispatchEvent(new Event('input'))")
        page.wait_for("document.getElementById('error').textContent != ''")
