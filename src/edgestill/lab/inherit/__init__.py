"""Weight inheritance: a student that begins as a part of its teacher, and the way back."""

from __future__ import annotations

from edgestill.lab.inherit.carve import carve
from edgestill.lab.inherit.index_map import IndexMap, fuse_parameters_
from edgestill.lab.inherit.into import inherit_

__all__ = ["IndexMap", "carve", "fuse_parameters_", "inherit_"]
