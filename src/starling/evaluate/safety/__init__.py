"""Refusals: over-refusal on safe prompts, attack success on unsafe ones."""
