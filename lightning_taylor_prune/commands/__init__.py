"""The command line: ``python -m lightning_taylor_prune COMMAND`` or ``taylor-prune COMMAND``, a file for each.

A command is a module with ``NAME``, ``SUMMARY``, ``EXAMPLES``, ``add_arguments(parser)`` and ``run(arguments)``;
:data:`~lightning_taylor_prune.commands.main.COMMANDS` lists them.
"""
