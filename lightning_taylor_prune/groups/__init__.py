"""Which channels can be removed from a network, and which must be removed together.

May import: labels, modules, tracing, plan, errors.
"""

from lightning_taylor_prune.groups.find import find_groups
from lightning_taylor_prune.groups.group import ChannelGroup, LockedChannels, Slice
from lightning_taylor_prune.groups.groups import ChannelGroups

__all__ = ["ChannelGroup", "ChannelGroups", "LockedChannels", "Slice", "find_groups"]
