"""Sends train rows and eval rows through an encoder as one batch where that is the same as two.

What comes in: an encoder in training mode, its call in the joint pass, and the rows of the masked passes that go with
it. What goes out: the features of both, or `Unsplit` with a reason in words, and everything as it was.

`row_split` is a mode of torch's functions that follows the rows through the pass; `layouts` says where they lie in a
tensor. Each function has a rule: `layer_rules` for those that compute, `shape_rules` for those that move elements,
`mode_rules`, `heads` and `attention` for those that do something else in eval mode. A function without a rule ends the
pass. `averaging` has norms with averages of all batches wait for no counter, and `synchronised` has norms exchange
statistics with other processes once, though a pass is ended and repeated.
`records` tells what runs, and where each tensor comes from; `own_modes` finds modes that are read unseen,
and `two_passes` compares a first batch with what two passes come to where a user's code names its mode.
An encoder that is a chain of torch's own layers needs none of this: `known_layers` asks before each batch whether it
still is one, and it runs as it is.
`split_pass` runs an encoder so and puts back what a pass that was ended had changed; `joint_call` stands in for an
encoder's forward and remembers what could not be one pass; `choice` decides before a batch and says why.
"""
