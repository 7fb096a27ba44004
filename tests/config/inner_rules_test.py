import jax
import numpy as np

from lipnext_jax.config import inner_rules


def test_inner_rules_are_elementwise_and_odd():
  g = jax.random.normal(jax.random.key(0), (3, 4, 4))
  for name, rule in inner_rules.INNER_RULES.items():
    tx = rule(1e-2)
    plus, _ = tx.update(g, tx.init(g), g)
    minus, _ = tx.update(-g, tx.init(g), g)
    np.testing.assert_allclose(plus, -minus, atol=1e-7, err_msg=name)
    flat = g.reshape(-1)[::-1]
    other, _ = tx.update(flat, tx.init(flat), flat)
    np.testing.assert_allclose(
      other[::-1].reshape(g.shape), plus, atol=1e-7, err_msg=name
    )
