"""What a network is given: its arguments by modality, what an absent input is, and the rows of a masked batch.

What comes in: the arguments of a call, and the options that say which of them carry a modality. What goes out: the
inputs of each modality and all else (`arguments.Binding`), absent inputs (`absent`), and both repeated for the rows of
masked passes (`rows`, with `samples` and `opened` for values of Python). It touches no network but to read the
signature of its forward, and writes to nothing that it is given.
"""
