"""Commands of `pairwise`."""
