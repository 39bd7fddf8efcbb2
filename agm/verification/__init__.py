"""Compares a training step with its definition, one pass of the whole network for every subset.

`verify` is the public function, `oracle` the definition, `diagnosis` what may be wrong and what to do about it, and
`snapshot` what puts a network back to what it was. The room may look into the engine; nothing in the engine looks here.
"""
