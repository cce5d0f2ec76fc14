"""Commands of `alpaca_eval`."""
