"""Pure numerics: arrays in, arrays out; no input or output, no Ray, nothing of the rest of the project."""
