"""AGM inside other people's training loops.

Each module imports its framework, and nothing else of agm imports the module: `agm.integrations.amp` (gradient
scaling), `lightning`, `transformers`, `torchmetrics`, and `logs`, which serves every logger. Accelerate needs none.
`published` reads checkpoints of other code bases of the field.
"""
