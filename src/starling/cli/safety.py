"""Commands of `safety`."""
