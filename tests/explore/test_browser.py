"""The explorer in a real Chromium: what the page shows is what `rpo.bandit` gives, moved by keyboard alone."""

import contextlib
import dataclasses
import http.client
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import psutil
import pytest

from rpo.bandit import solve
from rpo.core.objectives import DPO, RPO
from rpo.explore import Settings, export_page, read_settings, state
from rpo.explore.settings import SLIDERS

pytest.importorskip("panel", reason="panel is not installed: pip install 'rpo-lab[explore]'")
playwright = pytest.importorskip(
    "playwright.sync_api", reason="playwright is not installed: pip install 'rpo-lab[dev]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed (Debian: chromium)")

ROOT = Path(__file__).parents[2]
SERVE = "from rpo.commands.explore import explore_command; explore_command(port=0, browser=False)"
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync"]
BETA = next(slider for slider in SLIDERS if slider.name == "beta")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[str, int]]:
    """The address of a running explorer, and its process."""
    command = [sys.executable, "-c", SERVE]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        line = process.stdout.readline()  # type: ignore[union-attr]
        assert line.startswith("Explorer: http://127.0.0.1:"), line + process.stdout.read()  # type: ignore[union-attr]
        yield line.split()[1], process.pid
        process.send_signal(signal.SIGINT)
        rest = process.communicate(timeout=20)[0]
        # Nothing of ours failed, Ctrl-C included; a request without a token leaves a traceback of Bokeh's.
        assert process.returncode == 0 and "rpo/explore" not in rest and "KeyboardInterrupt" not in rest, rest


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield browser
        browser.close()


@pytest.fixture
def page(chromium: Any) -> Iterator[Any]:
    """A fresh page that remembers what it asked the network for, and what went wrong in it."""
    context = chromium.new_context(viewport={"width": 1400, "height": 1000})
    made = context.new_page()
    made.set_default_timeout(20_000)
    made.asked, made.wrong = [], []
    made.on("request", lambda request: made.asked.append(request.url))
    made.on("pageerror", lambda error: made.wrong.append(str(error)))
    made.on("console", lambda message: made.wrong.append(message.text) if message.type == "error" else None)
    yield made
    context.close()
    assert not made.wrong


def shown(page: Any, serial: int) -> dict[str, float]:
    """Return the numbers on the page once it shows the answer to its change `serial`."""
    page.wait_for_selector(f"#results[data-serial='{serial}']")
    cells = page.locator("td[data-name]").evaluate_all("cells => cells.map(c => [c.dataset.name, c.dataset.value])")
    return {name: float(text) for name, text in cells}


def expected(settings: Settings) -> dict[str, float]:
    view = state(settings)
    names = ("gold", "gold_reference", "gold_best", "suboptimality", "kl", "coverage", "coverage_data")
    return {name: getattr(view, name) for name in (*names, "gap", "relative_gap", "tv_bound")}


def slider(page: Any, label: str) -> Any:
    """Find a slider as a screen reader does: by its role and name."""
    return page.get_by_role("slider", name=label, exact=True)


def settings_of(page: Any) -> Settings:
    settings, problems = read_settings(parse_qs(urlsplit(page.url).query))
    assert not problems
    return settings


def test_the_page_loads_from_this_machine_alone_and_shows_the_defaults(
    page: Any, server: tuple[str, int], tmp_path: Path
) -> None:
    page.goto(server[0])
    assert shown(page, 0) == expected(Settings())
    hosts = {urlsplit(url).hostname for url in page.asked if urlsplit(url).scheme not in ("data", "blob")}
    assert hosts == {"127.0.0.1"} and len(page.asked) > 1
    assert page.title() == "RPO explorer" and page.locator("svg").count() == 3
    page.screenshot(path=tmp_path / "explorer.png", full_page=True)
    assert (tmp_path / "explorer.png").stat().st_size > 30_000  # a white page has a few kB


def test_a_slider_moved_by_keyboard_changes_the_numbers_to_those_of_solve(page: Any, server: tuple[str, int]) -> None:
    page.goto(server[0])
    before = shown(page, 0)
    handle = slider(page, BETA.label)
    handle.focus()
    page.keyboard.press("ArrowRight")
    after = shown(page, 1)
    beta = BETA.positions[BETA.positions.index(Settings().beta) + 1]
    moved = dataclasses.replace(Settings(), beta=beta)
    assert after == expected(moved) != before
    problem = state(moved).problem
    found = solve(problem, state(moved).data, DPO(beta=beta), method="newton")
    assert (after["gap"], after["tv_bound"]) == (found.certificate.gap, found.certificate.tv_bound)
    assert after["gold"] == problem.expected_reward(found.policy)
    assert settings_of(page) == moved
    assert handle.get_attribute("aria-valuetext") == str(beta)
    assert page.evaluate("document.activeElement.shadowRoot !== null")  # the focus stays where the reader is
    page.keyboard.press("ArrowRight")
    assert shown(page, 2)["gold"] != after["gold"]


def test_a_copied_address_restores_the_state(page: Any, server: tuple[str, int], chromium: Any) -> None:
    page.goto(server[0])
    shown(page, 0)
    for number, (label, key) in enumerate(
        (("arms", "ArrowRight"), ("label noise", "ArrowRight"), (BETA.label, "Home")), 1
    ):
        slider(page, label).focus()
        page.keyboard.press(key)
        shown(page, number)
    page.get_by_role("combobox", name="method").select_option("chipo")
    numbers = shown(page, 4)
    settings = settings_of(page)
    assert (settings.method, settings.beta, settings.noise) == ("chipo", 0.02, 0.25) and settings.arms == 4
    other = chromium.new_context().new_page()
    other.goto(page.url)
    assert shown(other, 0) == pytest.approx(numbers, nan_ok=True, abs=0.0) and settings_of(other) == settings
    assert slider(other, BETA.label).get_attribute("aria-valuetext") == "0.02"
    assert other.get_by_role("combobox", name="method").input_value() == "chipo"
    other.context.close()


def test_fast_changes_end_at_the_last_one(page: Any, server: tuple[str, int]) -> None:
    """Ten key presses without waiting: no more answers than presses, and the last is that of the last position."""
    page.goto(server[0])
    shown(page, 0)
    slider(page, BETA.label).focus()
    start = BETA.positions.index(Settings().beta)
    for _ in range(10):
        page.keyboard.press("ArrowRight")
    beta = BETA.positions[start + 10]
    page.wait_for_url(f"**beta={beta:g}&**")
    page.wait_for_selector("#results[aria-busy=false]")
    serial = int(page.locator("#results").get_attribute("data-serial"))
    assert shown(page, serial) == expected(dataclasses.replace(Settings(), beta=beta)) and 1 <= serial <= 10


def test_parameters_that_cannot_be_used_are_said_plainly(page: Any, server: tuple[str, int]) -> None:
    page.goto(f"{server[0]}?beta=-1&arms=4&colour=%3Cb%3E")
    assert shown(page, 0) == expected(Settings(arms=4))
    alert = page.get_by_role("alert").inner_text()
    assert "beta: expected a number in [0.02, 10], got -1" in alert and "colour: expected one of" in alert
    assert "Traceback" not in page.content()
    slider(page, BETA.label).press("ArrowRight")
    shown(page, 1)
    assert page.get_by_role("alert").count() == 0


def test_text_of_the_figures_is_legible_on_a_projector(page: Any, server: tuple[str, int]) -> None:
    """At 1280 x 720 no letter of a figure is smaller than 12 pixels, and both figures fit the first screen."""
    page.set_viewport_size({"width": 1280, "height": 720})
    for query in ("", "?arms=12&n=1000000"):
        page.goto(server[0] + query)
        shown(page, 0)
        sizes = page.locator("#results svg text").evaluate_all(
            "texts => texts.map(t => parseFloat(t.getAttribute('font-size')) * t.getScreenCTM().a"
            " + parseFloat(t.getAttribute('font-size')) * Math.abs(t.getScreenCTM().b))"
        )
        assert len(sizes) > 20 and min(sizes) > 11.9
        for k in (0, 1):
            box = page.locator("#results svg").nth(k).bounding_box()
            assert box["y"] + box["height"] < 720
        # No two labels of one line of text lie on one another.
        apart = page.locator("#results svg").evaluate_all("""svgs => svgs.map(svg => {
            const boxes = [...svg.querySelectorAll('text')].map(t => t.getBoundingClientRect());
            return boxes.every((a, i) => boxes.every((b, j) => i >= j ||
                a.right < b.left + 1 || b.right < a.left + 1 || a.bottom < b.top + 4 || b.bottom < a.top + 4)); })""")
        assert apart == [True] * len(apart)


def test_the_knob_is_called_as_the_method_calls_it(page: Any, server: tuple[str, int]) -> None:
    page.goto(server[0])
    shown(page, 0)
    page.get_by_role("combobox", name="method").select_option("ipo")
    assert shown(page, 1) == pytest.approx(expected(dataclasses.replace(Settings(), method="ipo")), nan_ok=True)
    assert slider(page, "tau of IPO").count() == 1 and slider(page, BETA.label).count() == 0
    page.get_by_role("combobox", name="method").select_option("exo")
    shown(page, 2)
    assert page.locator("[data-name=status]").inner_text() == "stationary" and slider(page, BETA.label).count() == 1
    assert "Hollow marks" in page.locator("#results").inner_text()


def test_every_control_is_reached_by_tab(page: Any, server: tuple[str, int]) -> None:
    page.goto(server[0])
    shown(page, 0)
    reached = []
    for _ in range(len(SLIDERS) + 2):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate(
                "() => { let e = document.activeElement;"
                " while (e.shadowRoot && e.shadowRoot.activeElement) e = e.shadowRoot.activeElement; return e.name; }"
            )
        )
    # The method that the page opens on has no eta: its slider is grey.
    assert reached == ["method", *(s.name for s in SLIDERS if s.name != "eta"), "reference", "along"]


def test_it_listens_on_loopback_only_and_answers_its_own_pages_only(server: tuple[str, int]) -> None:
    """The operating system's list of the process's listening sockets; a web socket from a foreign page gets 403."""
    connections = psutil.Process(server[1]).net_connections()
    listening = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
    assert listening == {"127.0.0.1"}
    own = server[0].rstrip("/")
    assert upgrade(server[0], "http://evil.example") == 403
    assert upgrade(server[0], own) == 101  # control: its own page may


def test_another_name_for_its_address_is_refused(server: tuple[str, int]) -> None:
    """A page whose own name was made to resolve to 127.0.0.1 sends that name as Host: page, socket, script alike."""
    port = urlsplit(server[0]).port
    for host, status in (
        (f"evil.example:{port}", 403),
        ("127.0.0.1:1", 403),
        (f"127.0.0.1:{port}", 200),
        (f"LocalHost:{port}", 200),
    ):
        assert get(server[0], {"Host": host}) == status, host
    assert get(server[0], {"Origin": "http://evil.example"}) == 403
    assert upgrade(server[0], f"http://evil.example:{port}", host=f"evil.example:{port}") == 403


def get(address: str, headers: dict[str, str]) -> int:
    connection = http.client.HTTPConnection(str(urlsplit(address).hostname), urlsplit(address).port, timeout=20)
    connection.request("GET", "/", headers=headers)
    with contextlib.closing(connection):
        return connection.getresponse().status


def upgrade(address: str, origin: str, **headers: str) -> int:
    """Return the status of a request for a web socket by a page of `origin`."""
    parts = urlsplit(address)
    connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=10)
    key = {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version": "13"}
    connection.request(
        "GET", "/ws", headers={"Upgrade": "websocket", "Connection": "Upgrade", "Origin": origin, **key, **headers}
    )
    with contextlib.closing(connection):
        return connection.getresponse().status


SMALL = {
    "method": ("rpo", "dpo", "exo", "base"),
    "n": (10, 30),
    "beta": (0.05, 0.1),
    "eta": (0.1, 0.3),
    "seed": (2, 143),
}


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The address of a file with 4 draws x (RPO 4, DPO 2, EXO 2, imitation 1) states."""
    made = export_page(tmp_path_factory.mktemp("page") / "page.html", SMALL)
    assert (made.states, made.evidence["exact"], made.evidence["stationary"]) == (36, 4, 8)
    assert made.size < 200_000  # 36 states of 16 kB each, deflated
    return made.path.as_uri()


def test_the_exported_file_shows_the_numbers_of_solve_without_a_server(page: Any, exported: str) -> None:
    page.goto(exported)
    assert shown(page, 0) == pytest.approx(expected(Settings()), abs=0.0, nan_ok=True)
    assert page.asked == [exported] and page.locator("svg").count() == 3  # nothing but the file itself is read
    slider(page, "N, preferences").press("ArrowLeft")
    assert shown(page, 1) == pytest.approx(expected(Settings(n=10)), abs=0.0, nan_ok=True)
    page.get_by_role("combobox", name="method").select_option("rpo")
    shown(page, 2)
    slider(page, "eta, pessimism (RPO, FRPO)").press("ArrowRight")
    after = shown(page, 3)
    moved = Settings(method="rpo", n=10, eta=0.3)
    assert after == pytest.approx(expected(moved), abs=0.0, nan_ok=True)
    problem = state(moved).problem
    found = solve(problem, state(moved).data, RPO(beta=0.1, eta=0.3), method="newton")
    assert after["gold"] == problem.expected_reward(found.policy) != expected(Settings(n=10))["gold"]
    assert (after["gap"], after["tv_bound"]) == (found.certificate.gap, found.certificate.tv_bound)
    text = page.locator("form").inner_text()
    assert "holds 36 states" in text and "24 certified, 8 stationary, 4 exact" in text


def test_the_address_of_an_exported_state_restores_it(page: Any, exported: str) -> None:
    page.goto(f"{exported}#method=exo&seed=2&beta=0.05")
    wanted = expected(Settings(method="exo", seed=2, beta=0.05))
    assert shown(page, 0) == pytest.approx(wanted, abs=0.0, nan_ok=True)
    assert slider(page, BETA.label).get_attribute("aria-valuetext") == "0.05"
    assert page.get_by_role("combobox", name="method").input_value() == "exo" and page.get_by_role("alert").count() == 0
    slider(page, "seed of the draw").press("ArrowRight")
    shown(page, 1)
    assert "seed=143" in urlsplit(page.url).fragment and "method=exo" in urlsplit(page.url).fragment
    page.goto("about:blank")  # another fragment alone loads nothing
    page.goto(f"{exported}#method=ppo&seed=7&n=10&%3Cb%3E=1")
    assert shown(page, 0) == pytest.approx(expected(Settings(n=10)), abs=0.0, nan_ok=True)
    alert = page.get_by_role("alert").inner_text()
    assert alert == "Not in this file, the default taken instead: method=ppo, seed=7, <b>=1."


def test_the_policy_bars_are_the_policy(page: Any, server: tuple[str, int]) -> None:
    page.goto(f"{server[0]}?seed=3")
    shown(page, 0)
    heights = (
        page.locator("svg")
        .first.locator("rect[fill='#D55E00']")
        .evaluate_all("rects => rects.map(r => parseFloat(r.getAttribute('height')))")
    )
    np.testing.assert_allclose(np.array(heights[:3]) / 208, state(Settings(seed=3)).policy, atol=3e-4)
