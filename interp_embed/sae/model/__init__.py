"""A language model up to the hook that an SAE reads: tokens, templates, layers, sparse activations."""
