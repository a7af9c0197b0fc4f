"""Operators that labels cannot follow: the channels that they use are locked, with the reason."""

from __future__ import annotations

from typing import Any

from lightning_taylor_prune.labels.rules.context import Results, RuleContext, find_labels
from lightning_taylor_prune.labels.rules.registry import Rule, register_rule
from lightning_taylor_prune.labels.space import Labels

_LOCKING = {
    "is used by an operator that depends on the order or number of positions": """
        quantile nanquantile histc bincount multinomial nonzero nonzero_numpy unique_consecutive unique_dim _unique2
        isin searchsorted bucketize one_hot
    """,
    "is compared with targets by a loss": """
        cross_entropy_loss nll_loss nll_loss2d nll_loss_nd multi_margin_loss multilabel_margin_loss ctc_loss
        cosine_embedding_loss triplet_margin_loss
    """,
    "is compared with every other position": "cdist _cdist_forward pdist cov corrcoef",
    "is used by an operator on whole matrices": """
        linalg_inv inverse linalg_pinv pinverse linalg_solve linalg_qr linalg_svd svd linalg_eigh linalg_det
        linalg_slogdet linalg_cholesky cholesky linalg_matrix_exp matrix_exp linalg_cross cross kron
    """,
    "is read along a diagonal": "diag diag_embed diagflat diagonal trace",
    "is indexed by a tensor": "put take masked_scatter",
    "is rearranged in a way that labels cannot follow": "as_strided rot90 block_diag cartesian_prod",
    "is cut into overlapping frames": "stft istft",
    "defines a grid of coordinates": "affine_grid_generator",
}
"""Operators that cannot be followed, by the reason."""


def _locks(why: str) -> Rule:
    def rule(ctx: RuleContext, *args: Any, **kwargs: Any) -> Results:
        operands = find_labels([*args, kwargs])
        ctx.lock_all(operands, why)
        results = [Labels(shape, static=all(v.static for v in operands)) for shape in ctx.shapes]
        return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]

    return rule


for _why, _names in _LOCKING.items():
    register_rule(*(f"aten.{name}" for name in _names.split()))(_locks(_why))
