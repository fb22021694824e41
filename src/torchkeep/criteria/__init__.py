"""When to stop a training: `tk.Run(folder, stop=tk.criteria.Patience(5) | tk.criteria.NotANumber())`. One a file."""

from ..core.criterion import Criterion
from .budget import Budget
from .generalization import GeneralizationLoss
from .not_a_number import NotANumber
from .patience import Patience
from .rising import Rising
from .target import TargetReached

CRITERIA = {
    "patience": "criteria.patience:Patience",
    "generalization-loss": "criteria.generalization:GeneralizationLoss",
    "rising": "criteria.rising:Rising",
    "not-a-number": "criteria.not_a_number:NotANumber",
    "target-reached": "criteria.target:TargetReached",
    "budget": "criteria.budget:Budget",
}

__all__ = [
    "CRITERIA",
    "Budget",
    "Criterion",
    "GeneralizationLoss",
    "NotANumber",
    "Patience",
    "Rising",
    "TargetReached",
]
