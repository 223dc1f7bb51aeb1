"""Text to syntax tree and back: layout, grammar, parser, printer. Knows nothing of meaning."""
