"""Starling: align a language model with AI feedback.

The chain, in the order of the data (each name is a module of this package):

    prompts    gather, filter, deduplicate, split
    responses  K responses per prompt from a pool of models
    ranking    a judge ranks all K in one call ("internal pairwise rating")
    nectar     the rankings as a Nectar-style dataset
    reward     a reward model learns them with the K-wise (Plackett–Luce) loss
    policy     APA or PPO tunes the policy on it
    evaluate   reward accuracy, head to head, gold score
    report     one self-contained page
    publish    dataset and model cards

`starling run configs/tiny.toml` runs it all; `starling.pipeline.STAGES` is the same story in code.
"""

__version__ = "0.1.0"
