"""The pages in a browser: by keyboard alone, in both colour schemes, on narrow screens, and when something is wrong."""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

playwright = pytest.importorskip("playwright.sync_api", reason="the environment is older than the lock: make venv")

TASKS = {
    "masks": "fill-mask",
    "labels": "sequence-classification",
    "tags": "token-classification",
    "reader": "question-answering",
    "vectors": "embedding",
    "hashes": "echo",
}
MODELS = [part for name, task in TASKS.items() for part in ("--model", f"{name}=dummy:{task}")]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One for all tests; each has a context of its own."""
    # Tests can't import a file beside them.
    specification = importlib.util.spec_from_file_location("chromium", Path(__file__).with_name("chromium.py"))
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    # Its dataclass looks itself up there.
    sys.modules["chromium"] = module
    specification.loader.exec_module(module)
    found = module.find()
    with playwright.sync_playwright() as started:
        running = started.chromium.launch(
            executable_path=found.path, args=found.arguments, env={**os.environ, **found.environment}
        )
        yield running
        running.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens pages; whatever a page complained of in the console fails the test: errors, and breaches of its policy."""
    contexts, complaints = [], []

    def opened(url: str, **context: Any) -> Any:
        made = browser.new_context(**context)
        made.set_default_timeout(30_000)
        contexts.append(made)
        page = made.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        # Statuses and ended servers that a test asks for are written there too.
        page.on(
            "console",
            lambda line: (
                line.type == "error" and "Failed to load resource" not in line.text and complaints.append(line.text)
            ),
        )
        page.goto(url)
        return page

    yield opened
    for each in contexts:
        each.close()
    assert complaints == []


def ready(server: Any) -> Any:
    server.wait_for_event("ready")
    return server


def ask(page: Any) -> Any:
    """Ask from the keyboard, in whatever field has the focus, and wait for an answer or a problem."""
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#answer .timing, #answer .problem")
    return page.locator("#answer")


def test_every_task_is_answered_from_the_keyboard(start_server: Any, visit: Any) -> None:
    """Models are chosen with arrow keys; the answer has what the task's route says, and where the time went."""
    page = visit(ready(start_server(*MODELS)).url)
    page.wait_for_selector("#columns:not([hidden])")
    assert page.locator("#state").inner_text() == "Ready, 6 models"
    page.locator("input[name=model]").first.focus()
    shown = {}
    for name in TASKS:
        assert page.locator(".model:has(input:checked) b").inner_text() == name
        page.keyboard.press("Tab")
        answer = ask(page)
        assert answer.locator(".problem").count() == 0, answer.inner_text()
        assert "ms in all, of which" in answer.inner_text()
        assert "Infer" in answer.locator(".legend").inner_text()
        shown[name] = (answer.locator(".bars li").count(), answer.locator("mark").count())
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("ArrowDown")
    assert shown["masks"] == (5, 1)
    assert shown["labels"] == (8, 0)
    assert shown["tags"][1] > 0
    assert shown["reader"][0] == 3
    assert shown["reader"][1] >= 1
    assert shown["vectors"] == (4, 0)


def test_a_guess_can_be_tried_in_the_text(start_server: Any, visit: Any) -> None:
    """Each blank shows what was chosen for it."""
    page = visit(ready(start_server("--model", "dummy:fill-mask")).url)
    page.locator("#text").fill("one [MASK] and two [MASK].")
    answer = ask(page)
    assert answer.locator("mark").count() == 2
    third = answer.locator(".bars").nth(1).locator("button").nth(2)
    token = third.locator("span").first.inner_text()
    third.focus()
    page.keyboard.press("Enter")
    assert answer.locator("mark").nth(1).inner_text() == token.removeprefix("##")
    assert third.get_attribute("aria-pressed") == "true"


def test_marks_stand_where_the_words_are(start_server: Any, visit: Any) -> None:
    """Also behind characters that JavaScript counts twice; what looks like markup stays text."""
    page = visit(ready(start_server("--model", "dummy:token-classification")).url)
    text = "😀🎉 Ada met <img src=x onerror=alert(1)> in Zürich 😀 today"
    page.locator("#text").fill(text)
    answer = ask(page)
    marks = [each.evaluate("mark => mark.firstChild.textContent") for each in answer.locator("mark").all()]
    words = [each.locator("td").first.inner_text() for each in answer.locator("tbody tr").all()]
    assert marks == words != []
    assert (
        answer.locator(".prose").evaluate(
            "node => { for (const small of node.querySelectorAll('small')) small.remove(); return node.textContent; }"
        )
        == text
    )
    assert page.locator("img").count() == 0


def test_problems_are_sentences(start_server: Any, visit: Any) -> None:
    """The server's own, and one when it is gone."""
    server = ready(start_server("--model", "dummy:fill-mask"))
    page = visit(server.url)
    page.locator("#text").fill("no blank here")
    answer = ask(page)
    assert answer.locator(".problem").inner_text() == (
        "An input has no mask token\nInput 0 has no [MASK]: put one in it."
    )
    server.end()
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("text=The server can’t be reached")


def test_a_key_is_asked_for_and_kept_in_the_page_alone(start_server: Any, visit: Any, tmp_path: Path) -> None:
    """A wrong one is told in a sentence."""
    (tmp_path / "keys").write_text(f"shop:{hashlib.sha256(b'one').hexdigest()}\n")
    page = visit(ready(start_server("--model", "dummy:", "--api-keys", str(tmp_path / "keys"))).url)
    page.wait_for_selector("#access:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "key"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    page.wait_for_selector("text=This key isn't known here")
    page.locator("#key").fill("one")
    page.keyboard.press("Enter")
    page.wait_for_selector("#columns:not([hidden])")
    page.locator("#text").focus()
    assert ask(page).locator(".bars li").count() == 8
    assert page.evaluate("localStorage.length + sessionStorage.length + document.cookie.length") == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_fit_narrow_screens_in_both_schemes(start_server: Any, visit: Any, scheme: str) -> None:
    """Nothing is wider than the screen, and text stands out from what is behind it (WCAG 2.2, 4.5 to 1)."""
    url = ready(start_server(*MODELS)).url
    page = visit(url, viewport={"width": 320, "height": 640}, color_scheme=scheme)
    page.wait_for_selector("#columns:not([hidden])")
    page.locator("#text").focus()
    ask(page)
    assert page.evaluate("document.documentElement.scrollWidth") == 320
    colours = """() => {
      const canvas = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
      const channel = (value) => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
      const light = (colour) => {
        canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(colour);
        canvas.fillRect(0, 0, 1, 1);
        const [red, green, blue] = canvas.getImageData(0, 0, 1, 1).data;
        return 0.2126 * channel(red) + 0.7152 * channel(green) + 0.0722 * channel(blue);
      };
      const contrast = (one, other) => {
        const [low, high] = [light(one), light(other)].sort((a, b) => a - b);
        return (high + 0.05) / (low + 0.05);
      };
      const pairs = [["--ink", "--paper"], ["--ink", "--card"], ["--soft", "--paper"], ["--soft", "--card"],
        ["--accent", "--wash"], ["--accent", "--card"], ["--on-accent", "--accent"], ["--bad", "--bad-wash"]];
      return pairs.map(([one, other]) => [`${one} on ${other}`, contrast(one, other)]);
    }"""
    assert [pair for pair in page.evaluate(colours) if pair[1] < 4.5] == []
    page = visit(url + "/docs", viewport={"width": 320, "height": 640}, color_scheme=scheme)
    page.wait_for_selector(".operation")
    assert page.evaluate("document.documentElement.scrollWidth") == 320


def test_the_reference_has_every_route_and_field(start_server: Any, visit: Any) -> None:
    """As the schema has them."""
    server = ready(start_server("--model", "dummy:"))
    page = visit(server.url + "/docs")
    page.wait_for_selector(".operation")
    schema = page.request.get(server.url + "/openapi.json").json()
    titles = [each.inner_text() for each in page.locator(".operation h2").all()]
    expected = {f"{method.upper()}{path}" for path, methods in schema["paths"].items() for method in methods}
    assert {title.replace(" ", "").replace("\n", "") for title in titles} == expected
    fields = page.locator("#post-v1-classify td:first-child").all_inner_texts()
    assert {field.split()[0] for field in fields} >= {"inputs", "truncate", "top_k", "results[].predictions[].label"}
