"""The page in a browser, and its colours."""

import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any

import pytest
from serving import BLOCK_SIZE, Live, alone, live, of_bytes, small

import makemoe
from benchmarks.page_picture import chromium, found_browser
from makemoe.serve.limits import Limits
from makemoe.serve.text import Wish

needs_browser = pytest.mark.skipif(found_browser() is None, reason="Chromium is not installed")
WRITE = {"Prompt": "abca", "Length": "30", "Seed": "5"}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    pytest.importorskip("playwright", reason="playwright is not installed")
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def model() -> makemoe.Model:
    return small()


@pytest.fixture(scope="module")
def tiny(model: makemoe.Model) -> Iterator[Live]:
    with live(model, Limits(max_tokens=50_000)) as server:
        yield server


class Opened:
    """A page that is open; it keeps what it asks for and complains of."""

    def __init__(self, browser: Any, url: str, **settings: Any) -> None:
        self.page = browser.new_page(**settings)
        self.page.set_default_timeout(20_000)
        self.asked: list[str] = []
        self.faults: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on(
            "console",
            lambda message: message.type == "error" and self.faults.append(message.text),
        )
        self.page.goto(url)
        self.page.wait_for_load_state("networkidle")

    def fill(self, **fields: str) -> None:
        for label, value in fields.items():
            self.page.get_by_label(label, exact=True).fill(value)

    def write(self, **fields: str) -> None:
        """Write a text to its end."""
        self.fill(**fields)
        self.page.get_by_role("button", name="Write").click()
        self.says("Done")

    def says(self, words: str) -> None:
        self.page.get_by_role("status").filter(has_text=words).wait_for()

    def text(self) -> str:
        found: str = self.page.locator("#text").text_content()
        return found.replace("⏎", "")

    def colours(self) -> list[str]:
        return self.all(".token", "(one) => one.style.background")

    def all(self, selector: str, of: str) -> list[Any]:
        found: list[Any] = self.page.eval_on_selector_all(selector, f"(all) => all.map({of})")
        return found


@pytest.fixture
def opened(browser: Any, tiny: Live) -> Iterator[Opened]:
    """The page; at the end, nothing was asked of another host, and nothing went wrong."""
    opened = Opened(browser, tiny.url)
    yield opened
    opened.page.close()
    assert all(url.startswith(f"{tiny.url}/") for url in opened.asked)
    assert opened.faults == []


def css(colour: str) -> str:
    """A colour as a browser writes it."""
    return "rgb({}, {}, {})".format(*(int(colour[n : n + 2], 16) for n in (1, 3, 5)))


def experts_of(server: Live, layer: int, **fields: Any) -> list[int]:
    """The first expert of each token in a layer."""
    choice = server.post(**fields, experts=True, echo=True).json["choices"][0]
    return [one["layers"][layer]["experts"][0] for one in choice["experts"]]


@needs_browser
def test_a_text_is_written_on_the_colours_of_its_experts(
    opened: Opened, tiny: Live, model: makemoe.Model
) -> None:
    opened.write(**WRITE)
    assert opened.text() == alone(model, Wish("abca", 30, 0.8, seed=5, echo=True))
    about = tiny.ask("GET", "/about").json
    given = {"prompt": "abca", "max_tokens": 30, "seed": 5, "temperature": 0.8}
    experts = experts_of(tiny, 0, **given)
    assert opened.colours() == [css(about["colours"][expert]) for expert in experts]
    given_bold = opened.all(".token", "(one) => one.classList.contains('given')")
    assert given_bold == [True] * 4 + [False] * 30


@needs_browser
def test_what_lies_before_the_context_is_not_read(opened: Opened, model: makemoe.Model) -> None:
    prompt = "abcdefghij" * 7
    opened.write(Prompt=prompt, Length="5", Seed="1")
    assert opened.text() == alone(model, Wish(prompt, 5, 0.8, seed=1, echo=True))
    first = opened.page.locator(".token").first
    assert first.text_content() == prompt[:-BLOCK_SIZE]
    assert first.get_attribute("aria-label") == f"{prompt[:40]}..., not read"
    first.click()
    assert "The model does not read it" in opened.page.locator("#experts").inner_text()


@needs_browser
def test_another_layer_recolours_without_asking_again(opened: Opened, tiny: Live) -> None:
    opened.write(**WRITE)
    before, asked = opened.colours(), len(opened.asked)
    opened.page.get_by_role("radio", name="2", exact=True).check()
    about = tiny.ask("GET", "/about").json
    experts = experts_of(tiny, 2, prompt="abca", max_tokens=30, seed=5, temperature=0.8)
    assert opened.colours() == [css(about["colours"][expert]) for expert in experts] != before
    assert len(opened.asked) == asked
    layers = opened.all("input[name=layer]", "(one) => one.value")
    assert layers == ["0", "2"]  # layer 1 is dense


@needs_browser
def test_a_chosen_character_shows_its_experts_and_what_may_follow(
    opened: Opened, tiny: Live
) -> None:
    opened.write(**WRITE)
    fields = {"prompt": "abca", "max_tokens": 30, "seed": 5, "temperature": 0.8}
    choice = tiny.post(**fields, experts=True, echo=True).json["choices"][0]
    opened.page.locator(".token").nth(7).click()
    told = choice["experts"][7]
    shown = [line.split("expert ") for line in opened.all("#experts li", "(one) => one.innerText")]
    found = [re.findall(r"[\d.]+", line[1]) for line in shown]
    expected = [
        (expert, weight)
        for layer in told["layers"]
        if layer is not None
        for expert, weight in zip(layer["experts"], layer["weights"], strict=True)
    ]
    assert [int(expert) for expert, _ in found] == [expert for expert, _ in expected]
    assert [float(share) for _, share in found] == pytest.approx(
        [100 * weight for _, weight in expected], abs=0.06
    )
    assert "Layer 1: dense" in opened.page.locator("#experts").inner_text()
    likely = opened.all("#following .value", "(one) => one.textContent")
    assert [float(share.rstrip("%")) for share in likely] == pytest.approx(
        [100 * after["probability"] for after in told["following"]], abs=0.06
    )


@needs_browser
def test_the_loads_are_the_shares_of_the_choices(opened: Opened, tiny: Live) -> None:
    opened.write(**WRITE)
    fields = {"prompt": "abca", "max_tokens": 30, "seed": 5, "temperature": 0.8}
    told = tiny.post(**fields, experts=True, echo=True).json["choices"][0]["experts"]
    chosen = [expert for one in told for expert in one["layers"][0]["experts"]]
    expected = [100 * chosen.count(expert) / len(chosen) for expert in range(4)]
    opened.page.wait_for_function("document.querySelectorAll('#loads li').length == 4")
    opened.page.wait_for_timeout(100)  # the bars are drawn with the next frame
    shown = opened.all("#loads .value", "(one) => parseFloat(one.textContent)")
    assert shown == pytest.approx(expected, abs=0.06)


@needs_browser
def test_the_keyboard_is_enough(opened: Opened) -> None:
    page, focus = opened.page, "document.activeElement"
    press = page.keyboard.press
    press("Tab")
    page.keyboard.type("abc\ndef")
    for _ in range(4):
        press("Tab")
    press("ControlOrMeta+a")
    page.keyboard.type("50")
    press("Enter")
    opened.says("Done: 57 tokens")
    passed = []
    while not page.evaluate(f"{focus}.classList.contains('token')"):
        press("Tab")
        passed.append(page.evaluate(f"{focus}.id || {focus}.name"))
        assert len(passed) < 10
    assert passed[:2] == ["seed", "write"]  # one stop for all tokens together
    seen = []
    for key in ("ArrowRight", "ArrowRight", "ArrowLeft", "End", "Home", "ArrowDown", "ArrowUp"):
        press(key)
        seen.append(page.evaluate(f"Number({focus}.dataset.number)"))
    assert seen == [1, 2, 1, 56, 0, 4, 0]
    assert page.evaluate(f"{focus}.getAttribute('aria-selected')") == "true"
    assert "Token 1: a" in page.locator("#chosen").inner_text()
    ring = page.evaluate(f"getComputedStyle({focus}).boxShadow")
    assert "4px" in ring
    press("Shift+Tab")
    press("Shift+Tab")
    press("ArrowRight")
    assert page.evaluate("document.querySelector('input[name=layer]:checked').value") == "2"


@needs_browser
def test_everything_that_can_be_used_has_a_name(opened: Opened) -> None:
    opened.write(**WRITE)
    names = opened.all(
        "input, textarea, button",
        "(one) => one.labels.length ? one.labels[0].textContent : one.textContent",
    )
    assert len(names) >= 12
    assert all(name.strip() for name in names)
    labels = opened.all(".token", "(one) => one.getAttribute('aria-label')")
    assert all(re.fullmatch(r"(?:[a-j]|newline), expert [0-3]", label) for label in labels)
    speaking = opened.all("[role=status], [aria-live], output", "(one) => one.id")
    assert speaking == ["status"]


@needs_browser
def test_a_phone_scrolls_in_one_direction_only(browser: Any, tiny: Live) -> None:
    opened = Opened(browser, tiny.url)
    opened.write(Prompt="a" * 40, Length="120", Seed="1")
    opened.page.locator(".token").first.click()
    for width in (320, 360, 800, 1400):
        opened.page.set_viewport_size({"width": width, "height": 640})
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    opened.page.close()


@needs_browser
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_words_have_contrast_in_light_and_dark(browser: Any, tiny: Live, scheme: str) -> None:
    opened = Opened(browser, tiny.url, color_scheme=scheme)
    opened.write(**WRITE)
    opened.page.locator(".token").first.click()
    opened.page.get_by_label("Show the experts' numbers").check()
    pairs = opened.page.evaluate(PAIRS)
    opened.page.close()
    assert len(pairs) > 20
    for words, ink, ground in pairs:
        assert contrast(numbers(ink), numbers(ground)) >= 4.5, (words, ink, ground)


PAIRS = """() => {
  const found = [];
  for (const one of document.querySelectorAll("body *")) {
    const words = [...one.childNodes].filter((n) => n.nodeType === 3 && n.data.trim());
    if (!words.length || !one.checkVisibility() || one.disabled) continue;
    let ground = one;
    const of = (e) => getComputedStyle(e).backgroundColor;
    while (of(ground) === "rgba(0, 0, 0, 0)") ground = ground.parentElement;
    found.push([words[0].data.trim(), getComputedStyle(one).color, of(ground)]);
  }
  return found;
}"""
"""The colour of all words, and of what they stand on."""


def numbers(colour: str) -> tuple[int, ...]:
    """Red, green and blue."""
    return tuple(map(int, re.findall(r"\d+", colour)[:3]))


def contrast(one: tuple[int, ...], other: tuple[int, ...]) -> float:
    """Of two colours (WCAG 2.2)."""

    def luminance(colour: tuple[int, ...]) -> float:
        shares = [c / 255 for c in colour]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in shares]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_the_pages_colours_have_contrast() -> None:
    style = files("makemoe.serve").joinpath("page", "page.css").read_text(encoding="utf-8")
    schemes = [dict(re.findall(r"--([\w-]+): (#\w{6});", part)) for part in style.split("@media")]
    assert all(len(scheme) == 8 for scheme in schemes[:2])
    rgb = lambda colour: tuple(int(colour[n : n + 2], 16) for n in (1, 3, 5))  # noqa: E731
    for scheme in schemes[:2]:
        for ink in ("ink", "quiet", "wrong"):
            for ground in ("ground", "panel"):
                assert contrast(rgb(scheme[ink]), rgb(scheme[ground])) >= 4.5, (ink, ground)
        assert contrast(rgb(scheme["on-accent"]), rgb(scheme["accent"])) >= 4.5
        for edge in ("line", "accent"):  # WCAG 2.2, 1.4.11: of controls and of focus
            for ground in ("ground", "panel"):
                assert contrast(rgb(scheme[edge]), rgb(scheme[ground])) >= 3, (edge, ground)


@needs_browser
def test_a_text_can_be_stopped_and_another_begun(opened: Opened, tiny: Live) -> None:
    opened.fill(Prompt="a", Length="50000", Seed="1")
    opened.page.get_by_role("button", name="Write").click()
    opened.page.locator(".token").nth(20).wait_for()
    opened.page.get_by_role("button", name="Stop").click()
    opened.says("Stopped after")
    opened.write(**WRITE)
    assert len(opened.text()) == 34


@needs_browser
def test_what_goes_wrong_is_told(opened: Opened) -> None:
    opened.fill(Prompt="aé")
    opened.page.get_by_role("button", name="Write").click()
    opened.says("character 'é' (U+00E9) at offset 1 is not one of the 11")
    assert "wrong" in (opened.page.get_by_role("status").get_attribute("class") or "")
    # The browser itself reports every answer that is an error.
    assert [fault for fault in opened.faults if "status of 400" not in fault] == []
    opened.faults.clear()


@needs_browser
def test_a_server_that_goes_away_is_told(browser: Any, model: makemoe.Model) -> None:
    with live(model, Limits(max_tokens=50_000)) as server:
        opened = Opened(browser, server.url)
        opened.fill(Prompt="a", Length="50000")
        opened.page.get_by_role("button", name="Write").click()
        opened.page.locator(".token").nth(20).wait_for()
    opened.says("the server is being stopped")
    opened.page.get_by_role("button", name="Write").click()
    opened.says("The server does not answer.")
    opened.page.close()


@needs_browser
def test_the_token_is_asked_for_and_kept(browser: Any, model: makemoe.Model) -> None:
    with live(model, token="open") as server:
        opened = Opened(browser, server.url)
        opened.fill(Token="shut")
        opened.page.get_by_role("button", name="Use it").click()
        opened.says("the token is missing or wrong")
        opened.fill(Token="open")
        opened.page.get_by_role("button", name="Use it").click()
        opened.page.get_by_text("2 of 4 experts per token").wait_for()
        opened.write(**WRITE)
        opened.page.close()
        linked = Opened(browser, f"{server.url}/#token=open")
        assert "open" not in linked.page.url
        linked.write(**WRITE)
        linked.page.close()


@needs_browser
def test_a_dense_model_has_no_experts_to_show(browser: Any) -> None:
    model = small(n_layer=1, dense_layers=[0])
    with live(model) as server:
        opened = Opened(browser, server.url)
        opened.write(**WRITE)
        assert opened.text() == alone(model, Wish("abca", 30, 0.8, seed=5, echo=True))
        assert set(opened.colours()) == {""}
        opened.page.locator(".token").nth(3).click()
        assert "Layer 0: dense" in opened.page.locator("#experts").inner_text()
        assert len(opened.all("#following li", "(one) => 1")) == 8
        for part in ("#controls", "#load"):
            assert not opened.page.locator(part).is_visible()
        assert opened.faults == []
        opened.page.close()


@needs_browser
def test_tokens_that_are_parts_of_characters_are_shown_as_characters(browser: Any) -> None:
    model = of_bytes(block_size=40)
    with live(model) as server:
        opened = Opened(browser, server.url)
        opened.write(Prompt="aé€\n<b>&amp;</b>", Length="20", Seed="3")
        wish = Wish("aé€\n<b>&amp;</b>", 20, 0.8, seed=3, echo=True)
        assert opened.text() == alone(model, wish).replace("\r\n", "\n")
        shown = opened.all(".token", "(one) => one.textContent")
        assert shown[:4] == ["a", "é", "€", "⏎\n"]
        opened.page.close()
