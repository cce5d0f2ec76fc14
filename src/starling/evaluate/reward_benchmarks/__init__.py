"""Benchmarks of reward models: does the reward order answers as people, facts and safety do, and better than trivial scorers?

items         the types: Item, Scored, Benchmark
"""
