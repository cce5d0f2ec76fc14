"""Losses as pure functions: tensors in, `LossOutputs(loss, metrics)` out; no model, no settings, no state.

Denominators are arguments, so that micro-batches, ranks and packs add up to the same step.
"""
