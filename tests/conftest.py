"""No test reaches for the network (read when huggingface_hub is first imported, by whichever test does), and what the
fuzz tests counted is shown at the end."""

import os
from collections import Counter
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Print the outcomes of the fuzz tests by kind; reports carry them here from every worker."""
    kinds: Counter[str] = Counter()
    for report in terminalreporter.stats.get("passed", []):
        for name, value in report.user_properties:
            if name == "fuzz_outcomes":
                kinds.update(value)
    if kinds:
        terminalreporter.section("fuzz")
        counted = ", ".join(f"{number} {kind}" for kind, number in kinds.most_common())
        terminalreporter.write_line(f"{kinds.total()} inputs, no other outcome: {counted}")
