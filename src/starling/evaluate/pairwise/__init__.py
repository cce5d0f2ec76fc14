"""Any models against each other: head to head, Arena-Hard, and how many prompts a comparison needs.

votes             saved verdicts of every kind of file, as columns
answers           answers and prompts of other tools' files, matched by prompt
paired            scores, intervals and tests from totals per prompt
measure           the table of a head to head
head_to_head      the same live
arena_hard_files  Arena-Hard's questions, answers and judgments
arena_hard_scores its scores: the official rules and ours; arena_hard_style: with style held equal
arena_hard        the table from files, or live; arena_hard_prompt: a user's own judge prompt
planning          sizes, from assumptions or from an earlier comparison
"""
