"""How long one change of the explorer takes, on the server and, where Chromium is installed, in the browser.

`python benchmarks/explore.py` writes results/explore.json; `--smoke` is a small run that writes to --output only.
Server: `state` and the page's text over random settings drawn from the sliders' positions, one thread, as wall time and
as processor time, which other work on the machine disturbs less. Browser: from a
key press on a slider to the frame in which its new numbers are painted, headless, the server in another process.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from rpo.core.records import environment, write_json
from rpo.explore.page import results
from rpo.explore.settings import ALONG, REFERENCES, SLIDERS, Settings
from rpo.explore.view import DRAWS, state

AIM = 150.0  # ms
METHODS = ("rpo", "dpo", "ipo", "chipo", "greedy", "base", "exo")  # solved as one batch, one by one, and fitted
SERVE = "from rpo.commands.explore import explore_command; explore_command(port=0, browser=False)"
# Presses a key on a slider and resolves, after the answer has been painted, to the milliseconds that took.
PRESS = """name => new Promise(done => {
  const find = root => { for (const e of root.querySelectorAll('*')) {
    if (e.id === name) return e;
    const inner = e.shadowRoot && find(e.shadowRoot); if (inner) return inner; } };
  const input = find(document), results = input.getRootNode().querySelector('#results');
  new MutationObserver((_, observer) => { observer.disconnect();
    requestAnimationFrame(() => setTimeout(() => done(performance.now() - begun))); }
  ).observe(results, {attributes: true, attributeFilter: ['data-serial']});
  input.value = String((Number(input.value) + 1) % (Number(input.max) + 1));
  const begun = performance.now();
  input.dispatchEvent(new Event('input', {bubbles: true}));
})"""


def random_settings(count: int, rng: np.random.Generator, **fixed: Any) -> list[Settings]:
    """Return settings whose sliders stand anywhere, alike often."""
    drawn = []
    for _ in range(count):
        values: dict[str, Any] = {s.name: s.positions[rng.integers(len(s.positions))] for s in SLIDERS}
        values["along"] = list(ALONG)[rng.integers(len(ALONG))]
        values["reference"] = list(REFERENCES)[rng.integers(len(REFERENCES))]
        drawn.append(Settings(**{**values, **fixed}))
    return drawn


def summary(times: list[float]) -> dict[str, float]:
    """Return median, 95th percentile and largest, ms, and how many."""
    return {
        "median_ms": float(np.median(times)),
        "p95_ms": float(np.percentile(times, 95)),
        "largest_ms": float(np.max(times)),
        "changes": len(times),
        "over_aim": int(np.sum(np.array(times) > AIM)),
    }


def on_the_server(count: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    rows = []
    for method in METHODS:
        for arms in (3, 6, 12):
            times, busy, certified, solved = [], [], 0, 0
            for settings in random_settings(count, rng, method=method, arms=arms):
                began, worked = time.perf_counter(), time.process_time()
                view = state(settings)
                results(view, (), {})
                times.append(1e3 * (time.perf_counter() - began))
                busy.append(1e3 * (time.process_time() - worked))
                certified, solved = certified + view.curve.certified, solved + view.curve.solved
            row = {"method": method, "arms": arms, **summary(times), "certified": certified, "solved": solved}
            rows.append({**row, "processor": summary(busy)})
    return rows


def in_the_browser(count: int, chromium: str) -> list[dict[str, Any]]:
    from playwright.sync_api import sync_playwright

    rows = []
    with subprocess.Popen([sys.executable, "-c", SERVE], stdout=subprocess.PIPE, text=True) as process:
        if process.stdout is None:
            raise RuntimeError("no output of the server")
        address = process.stdout.readline().split()[1]
        with sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
            for arms in (3, 12):
                page = browser.new_page(viewport={"width": 1400, "height": 1000})
                page.goto(f"{address}?arms={arms}")
                page.wait_for_selector("#results[data-serial='0']")
                for name in ("beta", "n"):
                    page.evaluate(PRESS, name)  # the first also warms up
                    times = [page.evaluate(PRESS, name) for _ in range(count)]
                    rows.append({"slider": name, "arms": arms, **summary(times)})
                page.close()
            browser.close()
        process.terminate()
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true")
    parser.add_argument("--output", type=Path, default=None)
    parser.add_argument("--changes", type=int, default=40, help="a method and number of arms, or a slider")
    parser.add_argument("--server-only", action="store_true")
    options = parser.parse_args()
    count = 2 if options.smoke else options.changes
    seed = 0
    server = on_the_server(count, np.random.default_rng(seed))
    for row in server:
        print("{method:15} {arms:3} arms: median {median_ms:6.1f} ms, p95 {p95_ms:6.1f}".format(**row), end=" ")
        print("(processor {median_ms:6.1f}, {p95_ms:6.1f})".format(**row["processor"]))
    chromium = shutil.which("chromium")
    browser = in_the_browser(count, chromium) if chromium and not options.server_only else []
    for row in browser:
        print("{slider:15} {arms:3} arms: median {median_ms:6.1f} ms, p95 {p95_ms:6.1f} (browser)".format(**row))
    load = [round(value, 2) for value in os.getloadavg()]
    record = {"load_average": load, "aim_ms": AIM, "draws": DRAWS, "seed": seed, "server": server, "browser": browser}
    folder = options.output or (None if options.smoke else Path(__file__).with_name("results"))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / "explore.json", {**record, "environment": environment()})


if __name__ == "__main__":
    main()
