"""`python -m starling` is the command `starling`; launchers of several processes want a module or a script.

    torchrun --nproc-per-node 8 -m starling train-reward CONFIG
"""

from starling.cli import main

if __name__ == "__main__":
    main()
