"""What experiments on language models share: models, texts, tokens, measures, and interventions on weights and activations."""
