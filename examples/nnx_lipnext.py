"""Trains and certifies LipNeXt as a flax `nnx` module.

    python examples/nnx_lipnext.py

A bridge of flax wraps the Linen model, and `nnx.Optimizer` takes the optimizer
like any optax rule. The data, handwritten digits of 8×8 pixels, are part of
scikit-learn, which this example needs.
"""

from flax import nnx
import jax
import jax.numpy as jnp
import optax
from sklearn import datasets

from lipnext_jax import certify
from lipnext_jax import losses
from lipnext_jax import models
from lipnext_jax import optim

EPSILON = 0.25  # ℓ2, pixels in [0, 1].

# nnx names a leaf 'blocks/M' or 'blocks/M/value'.
RULES = (
  (r'/(Q|R|M)\b', 'orthogonal'),
  (r'/(bias|pos|kernel)\b', 'euclidean'),
)


def load_digits(test_count=360):
  """Returns images [n, 8, 8, 1] in [0, 1] and labels [n], to train and test."""
  digits = datasets.load_digits()
  images = jnp.asarray(digits.images, jnp.float32)[..., None] / 16
  labels = jnp.asarray(digits.target, jnp.int32)
  order = jax.random.permutation(jax.random.key(0), len(labels))
  test, train = order[:test_count], order[test_count:]
  return (images[train], labels[train]), (images[test], labels[test])


def make_model(image_shape, *, depth=4, width=64, seed=0):
  """Wraps a small LipNeXt as an `nnx` module and draws its parameters."""
  linen = models.LipNeXt(10, depth=depth, width=width, patch_size=4)
  image = jnp.zeros((1, *image_shape))
  return nnx.bridge.ToNNX(linen).lazy_init(image, rngs=nnx.Rngs(seed))


def make_optimizer(model, learning_rate):
  """Returns the paper's optimizer, under which matrices stay orthogonal."""
  tx = optim.lipnext_optimizer(
    learning_rate,
    label_fn=lambda params: optim.orthogonal_labels(params, RULES),
  )
  return nnx.Optimizer(model, tx, wrt=nnx.Param)


def loss_fn(model, images, labels):
  """Returns the cross-entropy of logits that an attack within ε may cause."""
  kernel = models.head_kernel({'params': pure_params(model)})
  logits = model(images)
  return losses.emma_loss(logits, labels, kernel, EPSILON, logit_scale=8.0)


@nnx.jit
def train_step(model, optimizer, images, labels, key):
  """Updates the model in place on 64 examples; returns the loss."""
  batch = jax.random.randint(key, (64,), 0, len(labels))
  loss, grads = nnx.value_and_grad(loss_fn)(model, images[batch], labels[batch])
  optimizer.update(model, grads)
  return loss


def pure_params(model):
  """Returns the parameters as the tree of arrays that `certify` reads."""
  return nnx.to_pure_dict(nnx.state(model, nnx.Param))


def train(images, labels, steps, **options):
  """Returns a trained model, with lookahead's slow weights."""
  schedule = optax.cosine_decay_schedule(1e-2, steps)

  @nnx.jit
  def init():
    model = make_model(images.shape[1:], **options)
    return model, make_optimizer(model, schedule)

  model, optimizer = init()
  for key in jax.random.split(jax.random.key(1), steps):
    train_step(model, optimizer, images, labels, key)
  opt_state = nnx.as_pure(optimizer.opt_state)
  nnx.update(model, optim.slow_params(opt_state, pure_params(model)))
  return model


def certify_images(model, images):
  """Returns predictions [b], radii [b] and the proved constant Λ."""
  params = pure_params(model)
  certifier = certify.fast_certifier(model.to_nnx__module, params)
  predictions, rival_radii = certifier(images)
  radii = jnp.min(rival_radii, axis=-1)
  return predictions, radii, certify.lipschitz_bound(params)


def main():
  """Trains, then prints accuracy, certified accuracy and Λ."""
  train_data, (images, labels) = load_digits()
  model = train(*train_data, steps=300)
  predictions, radii, lipschitz = certify_images(model, images)
  correct = predictions == labels
  certified = jnp.mean(correct & (radii > EPSILON))
  print(f'clean accuracy {jnp.mean(correct):.1%}')
  print(f'certified at ℓ2 ε = {EPSILON}: {certified:.1%}')
  print(f'Lipschitz bound Λ = 1 + {lipschitz - 1:.1e} (proved)')


if __name__ == '__main__':
  main()
