"""A network -> an fx graph of ATen operators, recorded on fake tensors; the only home of torch's private dispatch APIs.

May import: errors.
"""
