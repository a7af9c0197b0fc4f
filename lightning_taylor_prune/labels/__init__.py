"""Channel labels through the graph: every channel position carries an integer, and operators unite them.

May import: modules, tracing, errors.
"""
