"""Commands of `ratings`."""
