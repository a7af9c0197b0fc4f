"""Operators that labels cannot follow: they lock what they touch, with the reason."""

from __future__ import annotations

from typing import Any

from lightning_taylor_prune.labels.rules.context import RuleContext, find_labels
from lightning_taylor_prune.labels.rules.registry import Rule, register_rule
from lightning_taylor_prune.labels.space import Labels

_LOCKING = {
    "depends on the order or number of positions": """
        quantile nanquantile histc bincount multinomial nonzero nonzero_numpy unique_consecutive unique_dim _unique2
        isin searchsorted bucketize one_hot
    """,
    "is compared with targets by a loss": """
        cross_entropy_loss nll_loss nll_loss2d nll_loss_nd multi_margin_loss multilabel_margin_loss ctc_loss
        cosine_embedding_loss triplet_margin_loss
    """,
    "is measured against every other position": "cdist _cdist_forward pdist cov corrcoef",
    "is taken as a matrix": """
        linalg_inv inverse linalg_pinv pinverse linalg_solve linalg_qr linalg_svd svd linalg_eigh linalg_det
        linalg_slogdet linalg_cholesky cholesky linalg_matrix_exp matrix_exp linalg_cross cross kron
    """,
    "is taken apart by its diagonals": "diag diag_embed diagflat diagonal trace",
    "is indexed by data": "index_put _index_put_impl _unsafe_index_put put take masked_scatter",
    "is laid out anew": "as_strided rot90 block_diag cartesian_prod",
    "is a signal that is cut into frames": "stft istft",
    "belongs to a recurrent cell, whose gates and states share one width": """
        lstm gru rnn_tanh rnn_relu lstm_cell gru_cell rnn_tanh_cell rnn_relu_cell
    """,
    "makes a grid of positions": "affine_grid_generator",
}
"""Operators that cannot be followed, by the reason."""


def _locks(why: str) -> Rule:
    def rule(ctx: RuleContext, *args: Any, **kwargs: Any) -> Any:
        operands = find_labels([*args, kwargs])
        ctx.lock_all(operands, why)
        results = [Labels(shape, static=all(v.static for v in operands)) for shape in ctx.shapes]
        return results if isinstance(ctx.node.meta["val"], (tuple, list)) else results[0]

    return rule


for _why, _names in _LOCKING.items():
    register_rule(*(f"aten.{name}" for name in _names.split()))(_locks(_why))
