"""From weights to matrices: roles, fused projections, experts, attention heads and tied weights."""
