"""AlpacaEval 1 and 2."""
