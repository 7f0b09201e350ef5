"""Forward passes: what the deviations mean. Activations beside singular vectors, and what a model loses without some of them.

Here alone `transformers` is imported. `models` loads, `placing` finds the scanned matrices in a loaded model, `texts` and
`tokens` read what it is run on, `activations`, `removal` and `evaluation` are the experiments as functions, and `running`
spreads them over Ray.
"""
