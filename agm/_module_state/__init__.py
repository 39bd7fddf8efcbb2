"""What a pass changes in a network for its duration, and puts back: modes, buffers, forwards, checkpoints."""
