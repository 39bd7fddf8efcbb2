"""`agm report`: runs, comparisons and studies as one page of HTML that needs no network and no other file.

`document.write_report` finds out what each folder is (`sources`), gathers what is told of it into one section each
(`run_section`, `comparison_section`, `study_section`, `competition_section`), and renders `templates/page.html`. What a
network does with each sample stands in `predictions`; confusions, the samples to show and their pictures are made from
that alone. Sections know nothing of HTML but for figures, which are SVG; templates compute nothing.
"""

from agm.training.report.document import write_report

__all__ = ["write_report"]
