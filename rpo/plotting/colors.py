"""The colour of each thing, the same in every figure, whatever else is drawn there."""

from __future__ import annotations

import colorsys
import re
import zlib
from collections.abc import Iterable

# Okabe and Ito's palette (2008) for what is drawn most.
ROLES = {
    "theory": "#000000",
    "table": "#E69F00",
    "transformer": "#0072B2",
    "gold": "#009E73",
    "proxy": "#CC79A7",
    "reference": "#777777",
}
# The methods as far apart from one another, and from gold and proxy, as a greedy search in OKLab put them.
METHODS = {
    "RPO": "#0072B2",
    "DPO": "#D55E00",
    "KTO": "#56B4E9",
    "SimPO": "#E69F00",
    "IPO": "#9900FF",
    "ChiPO": "#770066",
    "ORPO": "#55DD00",
    "EXO": "#005500",
    "CPO": "#0000CC",
    "SLiC": "#FF22FF",
    "RobustDPO": "#883300",
    "ConservativeDPO": "#CC0066",
    "RDPO": "#334466",
    "ODPO": "#7777FF",
    "GammaDPO": "#99CC99",
    "DiscoPOP": "#DDAAFF",
    "FDPO": "#9944AA",
    "FRPO": "#6600BB",
    "AlphaPO": "#0055FF",
    "CPL": "#998800",
    "ASFT": "#FF33AA",
    "NCA": "#FF9999",
    "APOZero": "#666600",
    "APODown": "#CC77FF",
    "BCO": "#FF0033",
    "PlackettLuceDPO": "#CC00CC",
    "PRO": "#CCCC00",
    "LiPO": "#00BB44",
    "InfoNCA": "#3344AA",
    "ListNCA": "#884466",
    "ListEXO": "#008800",
    "CoPG": "#00DDEE",
    "ALoL": "#007766",
    "SFT": "#BB9977",
    "BradleyTerry": "#8888BB",
}
COLORS = ROLES | METHODS
CYCLE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
TINT = 0.38  # of white, for each further series of one method


def color_of(label: str) -> str:
    """Return the colour of a method by its name, alone or at the head of a label such as "RPO, eta = 0.1".

    A name that is not in the table, your own method's, has the hue that its letters give it.
    """
    name = method_of(label)
    if name in COLORS:
        return COLORS[name]
    hue = zlib.crc32(name.encode()) / 2**32
    return "#" + "".join(f"{round(255 * part):02X}" for part in colorsys.hls_to_rgb(hue, 0.42, 0.6))


def method_of(label: str) -> str:
    """Return the name at the head of a label: "DPO (beta = 0.1)" is DPO's."""
    found = re.match(r"[\w.]+(?:-\w+)*", label.strip())
    return label if found is None else found[0]


def colors_of(labels: Iterable[str]) -> list[str]:
    """Return a colour a label: its method's, and for further labels of that method ever lighter tints of it."""
    seen: dict[str, int] = {}
    found = []
    for label in labels:
        name = method_of(label)
        found.append(tint(color_of(name), 1 - (1 - TINT) ** seen.get(name, 0)))
        seen[name] = seen.get(name, 0) + 1
    return found


def tint(color: str, share: float) -> str:
    """Return a hex colour mixed with so much white."""
    parts = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return "#" + "".join(f"{round(part + share * (255 - part)):02X}" for part in parts)
