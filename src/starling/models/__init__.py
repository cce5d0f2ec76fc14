"""Models on disk and in memory: tokenising (`encode`), folders (`load`), one number per conversation (`scalar_head`).

Needs the extra `[train]`; nothing that makes data imports this package.
"""
