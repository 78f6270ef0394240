"""Weight inheritance: a student that begins as a part of its teacher, and the way back.

- Units are chosen once for every *coupled* width and used at both ends of every connection; choosing each end by itself is
  worse than starting from random weights (11 % against 50 % on digits before any training).
- Which dimensions are coupled is read off one forward pass (`trace`) as equations between dimensions (`axes`, `rules`).
  DepGraph (Fang et al. 2023) finds the same groups in the autograd graph, layer by layer; equations between sums and
  products of axes also hold for heads, gates, groups, slices and views, and where they cannot be solved, nothing is cut.
- Taking over weights of a larger network: Xu et al. 2023, "Initializing Models with Larger Ones".
- Every kept weight is bit-equal to the teacher's at the mapped indices; BatchNorm statistics come along; nothing is
  rescaled. The index map allows the way back.
"""

from __future__ import annotations

from edgestill.lab.inherit.carving import carve
from edgestill.lab.inherit.index_map import IndexMap, fuse_parameters_
from edgestill.lab.inherit.into import inherit_

__all__ = ["IndexMap", "carve", "fuse_parameters_", "inherit_"]
