"""What is asked of an objective at its truth: what is left of each term, which other flows pass,
what follows from a map, how two objectives compare."""
