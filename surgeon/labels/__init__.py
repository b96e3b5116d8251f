"""Run a model on labels, and solve what they say: which positions of which tensors go together."""
