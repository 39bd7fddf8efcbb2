"""Stands for the rows of all subsets without writing them out.

`tensor` is a tensor that holds each modality's few rows and acts on these as long as it can, `handlers` says what each
of torch's functions does to them; `decision` finds out
whether a fusion may be given such tensors.
"""

from agm._lazy_rows import handlers as handlers  # which register themselves
