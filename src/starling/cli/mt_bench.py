"""Commands of `mt_bench`."""
