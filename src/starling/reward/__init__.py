"""Stage 5: a reward model from rankings of K answers, with the K-wise loss of the original."""
