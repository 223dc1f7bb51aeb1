"""The calculus: exact scalars, states in normal form with their derivatives, expansions at a
border, bounds on draws, and the reading of a spec's expressions in these."""
