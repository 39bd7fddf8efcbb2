"""Training from the command line and from Python: `train(Config(...), folder)`.

Writing a run's settings, drawing and comparing need the extra "train": pip install 'agm[train]'.
"""

from agm.training.compare import Comparison, compare_methods
from agm.training.config import Config, read_config
from agm.training.contributions import measure_contributions
from agm.training.errors import UserError
from agm.training.evaluation import Evaluation, evaluate
from agm.training.trainer import DivergedError, Observer, Result, load_run, train

__all__ = [
    "Comparison",
    "Config",
    "DivergedError",
    "Evaluation",
    "Observer",
    "Result",
    "UserError",
    "compare_methods",
    "evaluate",
    "load_run",
    "measure_contributions",
    "read_config",
    "train",
]
