"""The truth of an objective: the kinds of its rows, and what every network computes on each of them
once it has learned."""
