"""Stands for the rows of all subsets without writing them out.

`tensor` is a tensor that holds each modality's few rows and acts on these as long as it can; `decision` finds out
whether a fusion may be given such tensors.
"""
