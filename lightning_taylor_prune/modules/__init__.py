"""What modules store about their sizes, and how that follows a cut.

May import: tracing, plan, errors.
"""
