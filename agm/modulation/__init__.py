"""Turns masked logits into modulated gradients: scores, ratios, coefficients and the gradient of every masked row.

`functional` and `additive` are the public functions, `modulator` the module that holds their settings and state,
`scores` what a sample is scored by. They check their arguments and call one op of `agm.ops`; `unfused` serves what no
op covers. The room knows nothing of networks.
"""
