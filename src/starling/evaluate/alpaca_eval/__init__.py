"""AlpacaEval 1 and 2: answers to single instructions, judged in pairs against one baseline's; win rates, also length-controlled.

    files            model_outputs.json, annotations.json, leaderboard.csv
    length_control   the length-controlled win rate, exactly the official model
    measure          win rates, intervals, position gap of one model
    table            the table of many
    from_files       all of that from official files, without asking anybody

Source: tatsu-lab/alpaca_eval 0.6.6 (Li et al. 2023; Dubois et al. 2024, arXiv 2404.04475).
"""
