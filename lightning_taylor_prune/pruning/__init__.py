"""Choose, verify and cut, in any training loop; optimizers and checkpoints of pruned networks.

May import: criteria, groups, and what lies below.
"""
