"""What a pass changes in a network for its duration, and puts back: modes, buffers, forwards, checkpoints.

What comes in: a network before a masked pass or a step. What goes out: contexts and callables that leave it as it was,
whatever happens inside. This is the one room that writes to a user's modules.

`eval_mode` is the mode of the masked passes, in which `traces` puts back what forward leaves: attributes, what they
hold (`containers`, by `kinds`; `iterators`), tensors that are written to (`written`) and random numbers (`draws`).
`values` and `generators` are for steps that fail, and `undo` orders who puts back what; `writes` copies tensors before
functions write to them. `replace_forward` has something answer for a module, to one thread (`threads`); `hooks` leaves
observers out, `checkpoints` lets regions recompute nothing in another mode. `structure` looks at all modules once and
says whether they are still the same; `modules`, `compiled` and `capture` tell what kind of network and of step it is.
"""
