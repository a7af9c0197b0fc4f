"""``python -m lightning_taylor_prune COMMAND``."""

from lightning_taylor_prune.commands.main import main

if __name__ == "__main__":
    main()
