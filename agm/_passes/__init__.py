"""Computes a network's masked logits: a joint pass, and what the masked passes need beside it.

`masked_logits` chooses how: a network of one piece takes every masked row (there), one whose encoders are named by path
runs its own forward while the encoders answer (`by_path`, `encoder_calls`), and one that offers `encoders` and `fuse`
is taken apart (`by_protocol`, `joint_pass`). In comes a batch's arguments, out go joint logits and masked logits or
their summands. `subsets_apart` looks whether all subsets may go through as one batch; where they may not, each has a
pass of its own (`by_subset` where encoders are named). `plan` says in words what a step does, `chunks` bounds its
memory.
"""
