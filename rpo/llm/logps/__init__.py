"""How responses get their log-probabilities: of one forward pass, padded or packed."""
