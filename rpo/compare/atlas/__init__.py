"""The atlas of overoptimization: every method along its own knob on the same instances, compared at matched KL."""

from rpo.compare.atlas.entrants import Entrant, entrants
from rpo.compare.atlas.instances import INSTANCES, AtlasInstance
from rpo.compare.atlas.pull import found_pull
from rpo.compare.atlas.run import Atlas, atlas

__all__ = ["INSTANCES", "Atlas", "AtlasInstance", "Entrant", "atlas", "entrants", "found_pull"]
