"""Training from the command line and from Python: `train(Config(...), folder)`.

Writing a run's settings, drawing and comparing need the extra "train": pip install 'agm-torch[train]'.
"""

from agm.training.compare import Comparison, compare_methods
from agm.training.competition import Competition, run_competition
from agm.training.competition_settings import CompetitionSettings
from agm.training.config import Config, read_config
from agm.training.contributions import measure_contributions
from agm.training.errors import DivergedError, UserError
from agm.training.evaluation import Evaluation, evaluate
from agm.training.observer import Observer
from agm.training.result import Result
from agm.training.strengths import concept_method, concepts_of, strength_apart, strength_of
from agm.training.trainer import load_run, train

__all__ = [
    "Comparison",
    "Competition",
    "CompetitionSettings",
    "Config",
    "DivergedError",
    "Evaluation",
    "Observer",
    "Result",
    "UserError",
    "compare_methods",
    "concept_method",
    "concepts_of",
    "evaluate",
    "load_run",
    "measure_contributions",
    "read_config",
    "run_competition",
    "strength_apart",
    "strength_of",
    "train",
]
