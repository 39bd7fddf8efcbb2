"""Sends train rows and eval rows through an encoder as one batch where that is the same as two.

`choice` decides how many passes an encoder takes and says why; `row_split` tells the rows apart inside the pass;
`numeric_check` compares a first batch with two passes.
"""
