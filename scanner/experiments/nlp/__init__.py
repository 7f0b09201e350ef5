"""Code shared by experiments on language models: models, texts, tokens, measures, changes of weights and activations."""
