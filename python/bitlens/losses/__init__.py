"""Contrastive losses and bounds on mutual information as modules, none of which forms an n x m matrix."""

from bitlens.losses.contrastive import InfoNCE, NTXent
from bitlens.losses.from_exponentials import FLO, NWJ, DonskerVaradhan, Interpolated, LeaveOneOut
from bitlens.losses.from_maps import SMILE, JensenShannon

__all__ = [
    "FLO",
    "NWJ",
    "SMILE",
    "DonskerVaradhan",
    "InfoNCE",
    "Interpolated",
    "JensenShannon",
    "LeaveOneOut",
    "NTXent",
]
