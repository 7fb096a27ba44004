"""The paper's optimizer for all parameters, and access to its slow weights."""

from collections.abc import Callable
from collections.abc import Sequence
import re
from typing import Any

import jax
from jax import lax
import jax.numpy as jnp
import optax

from lipnext_jax import trees
from lipnext_jax.optim import euclidean
from lipnext_jax.optim import exponential
from lipnext_jax.optim import manifold

# (expression on 'a/b/leaf', label), for the leaves of `lipnext_jax.models`.
LABEL_RULES = (
  (r'(^|/)(Q|R|M)$', 'orthogonal'),
  (r'(^|/)(bias|pos|head/kernel)$', 'euclidean'),
  (r'(^|/)(\w+_raw|conv_(circular|zero)|spectrum)$', 'euclidean'),
)


def orthogonal_labels(
  params: optax.Params, rules: Sequence[tuple[str, str]] = LABEL_RULES
) -> Any:
  """Labels every leaf 'orthogonal' or 'euclidean', for `optax.partition`.

  Args:
    params: tree of parameters.
    rules: pairs (regular expression, label). A leaf gets the label whose
      expressions are found in its name, 'a/b/leaf'.

  Raises:
    ValueError: no rule matches a leaf, or rules with different labels do.

  >>> orthogonal_labels({'blocks': {'R': 0, 'bias': 0}})
  {'blocks': {'R': 'orthogonal', 'bias': 'euclidean'}}
  """

  def label(path, _):
    name = trees.path_name(path)
    labels = {label for pattern, label in rules if re.search(pattern, name)}
    if len(labels) != 1:
      found = f'matches {sorted(labels)}' if labels else 'matches no rule'
      raise ValueError(
        f'parameter {name!r} {found} of {list(rules)}; give orthogonal_labels '
        'rules that match it with one label.'
      )
    return labels.pop()

  return jax.tree_util.tree_map_with_path(label, params)


def slow_params(opt_state: optax.OptState, params: optax.Params) -> Any:
  """Returns lookahead's slow weights, which are those to evaluate.

  Args:
    opt_state: state of an optax transformation of `params`, with states of
      `orthogonal` and `lookahead` at any depth (chain, MultiSteps, …).
    params: fast weights, which are returned where a leaf has no slow one.

  >>> tx = euclidean.lookahead(optax.sgd(0.1))
  >>> p = {'bias': jnp.ones(2)}
  >>> slow_params(tx.init(p), p)['bias'].tolist()
  [1.0, 1.0]
  """
  kinds = (manifold.OrthogonalState, euclidean.LookaheadState)
  slow: dict[Any, jax.Array] = {}
  nodes = jax.tree.leaves(opt_state, is_leaf=lambda s: isinstance(s, kinds))
  for node in nodes:
    if isinstance(node, kinds):
      slow |= jax.tree_util.tree_leaves_with_path(node.slow)
  return jax.tree_util.tree_map_with_path(slow.get, params)


def lipnext_optimizer(
  learning_rate: optax.ScalarOrSchedule,
  *,
  inner: Callable[..., optax.GradientTransformation] | None = None,
  clip_norm: float | None = 3.0,
  lookahead_period: int | None = 6,
  lookahead_alpha: float = 0.5,
  retraction_period: int | None = 100,
  retraction: str = 'newton_schulz',
  thresholds: Sequence[float] = exponential.THRESHOLDS,
  precision: lax.PrecisionLike = lax.Precision.HIGHEST,
  stack_sharding: jax.sharding.NamedSharding | None = None,
  label_fn: Callable[[optax.Params], Any] | None = None,
) -> optax.GradientTransformationExtraArgs:
  """Returns the paper's optimizer: clipped NAdam with lookahead.

  Gradients are clipped by their global norm. Orthogonal matrices are then
  updated by `orthogonal(inner)`, all other parameters by `lookahead(inner)`
  (paper §4, after LiResNet++). `update` needs `params`.

  Args:
    learning_rate: number or schedule; the paper's has a warm-up to 1e-3, see
      `optax.warmup_cosine_decay_schedule`.
    inner: function from a learning rate to an elementwise, odd optax rule;
      None: `scheduled_nadam`. (`optax.inject_hyperparams` needs `inner` and
      `label_fn` in its `static_args`.)
    clip_norm: bound on the global gradient norm; None: no clipping.
    lookahead_period: steps between syncs of all weights; None: no lookahead.
    lookahead_alpha: see `orthogonal`.
    retraction_period: see `orthogonal`.
    retraction: see `orthogonal`.
    thresholds: see `orthogonal`; (0, 0, 0): the exact exponential.
    precision: see `orthogonal`.
    stack_sharding: see `orthogonal`.
    label_fn: function from parameters to a tree of 'orthogonal' and
      'euclidean'; None: `orthogonal_labels`.

  >>> params = {'R': jnp.eye(3), 'bias': jnp.zeros(3)}
  >>> tx = lipnext_optimizer(1e-3)
  >>> updates, state = tx.update(params, tx.init(params), params)
  >>> jax.tree.map(jnp.shape, updates)
  {'R': (3, 3), 'bias': (3,)}
  """
  inner = inner or euclidean.scheduled_nadam
  plain = inner(learning_rate)
  if lookahead_period is not None:
    plain = euclidean.lookahead(plain, lookahead_period, lookahead_alpha)
  rules = {
    'orthogonal': manifold.orthogonal(
      inner,
      learning_rate,
      lookahead_period=lookahead_period,
      lookahead_alpha=lookahead_alpha,
      retraction_period=retraction_period,
      retraction=retraction,
      thresholds=thresholds,
      precision=precision,
      stack_sharding=stack_sharding,
    ),
    'euclidean': plain,
  }
  tx = optax.partition(rules, label_fn or orthogonal_labels)
  if clip_norm is None:
    return optax.with_extra_args_support(tx)

  def clip(updates, _):
    # As `optax.clip_by_global_norm`, which in optax 0.2.8 raises for bfloat16
    # leaves and an injected float32 bound.
    norm = optax.tree.norm(updates)
    scale = jnp.where(norm <= clip_norm, 1, clip_norm / norm)
    return optax.tree.cast_like(optax.tree.scale(scale, updates), updates)

  return optax.chain(optax.stateless(clip), tx)
