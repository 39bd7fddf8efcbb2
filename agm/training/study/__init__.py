"""Many methods on many datasets: tuned with equal budgets, measured once on the test splits, and ranked.

`study_file` reads what is to be run, `requests` says which runs that is, `running` does them, `rows` keeps what they
found, one line of JSON a run, and `tables`, `ranks` and `pictures` show it.
"""

from agm.training.study.figures import StudyFigures
from agm.training.study.ranks import Ranking, rank_methods
from agm.training.study.running import run_study
from agm.training.study.study_file import Entry, Study, Task, read_study

__all__ = ["Entry", "Ranking", "Study", "StudyFigures", "Task", "rank_methods", "read_study", "run_study"]
