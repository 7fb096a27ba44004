"""What an exported program may ask of the machine: to compute, nothing else.

StableHLO can call any function that some library has registered with XLA, by
name and with arguments of the program's choice; read from the host and send to
it; and wait for other devices. A predictor needs none of that. `check` reads
the program as text, before anything of it is compiled, and refuses whatever it
does not know.
"""

import re

# Resolved while the program is compiled: is the batch what it was exported for?
CALLS = ('shape_assertion',)
# Functions of their operands. Not among them: custom_call, composite, infeed,
# outfeed, send, recv, and what several devices do together.
_PURE = """
  abs add and atan2 bitcast_convert broadcast broadcast_in_dim case cbrt ceil
  cholesky clamp compare complex concatenate constant convert convolution cosine
  count_leading_zeros divide dot dot_general dynamic_broadcast_in_dim
  dynamic_conv dynamic_gather dynamic_iota dynamic_pad dynamic_reshape
  dynamic_slice dynamic_update_slice exponential exponential_minus_one fft floor
  gather get_dimension_size if imag iota is_finite log log_plus_one logistic map
  maximum minimum multiply negate not optimization_barrier or pad popcnt power
  real real_dynamic_slice reduce reduce_precision reduce_window remainder
  reshape return reverse round_nearest_afz round_nearest_even rsqrt scatter
  select select_and_scatter shift_left shift_right_arithmetic
  shift_right_logical sign sine slice sort sqrt subtract tan tanh transpose
  triangular_solve while xor
"""
OPERATIONS = frozenset(_PURE.split())
# Words with a dot that are no operations: functions, and notes of JAX.
_NOTES = re.compile(
  r'func\.(func|call|return)|jax\.\w+|mhlo\.num_(partitions|replicas)'
)
# Quotes in a string are printed as \22, and backslashes doubled.
_STRING = re.compile(r'"([^"\\\n]*+(?:\\[^\n][^"\\\n]*+)*+)"')
# Not %values, @functions, #attributes or !types, nor 1.0.
_WORD = re.compile(r'(?<![\w.$#!@%])[A-Za-z_][\w$]*(?:\.[\w$]+)+')
_CALL = re.compile(r'stablehlo\.custom_call @(\w+)\(')


def check(text: str) -> None:
  """Refuses programs that do more than compute.

  Args:
    text: what `Exported.mlir_module` gives.

  Raises:
    ValueError: naming the operation.

  >>> check('%1 = stablehlo.add %0, %0 : tensor<f32> loc(#loc)')
  >>> check('stablehlo.custom_call @system(%0) : (tensor<f32>) -> ()')
  Traceback (most recent call last):
  ValueError: it calls system
  """
  code = _STRING.sub('""', text)
  if code.count('"') != 2 * len(_STRING.findall(text)):
    raise ValueError('it holds a string without an end')
  for operation in _generic_operations(text):
    _check_operation(operation)
  calls = _CALL.findall(code)
  for name in calls:
    if name not in CALLS:
      raise ValueError(f'it calls {name}')
  # Every other way to write a call, such as a quoted name, is refused unread.
  if len(calls) != code.count('custom_call'):
    raise ValueError('it has a custom_call of unknown form')
  for word in _WORD.findall(code):
    if word != 'stablehlo.custom_call' and not _NOTES.fullmatch(word):
      _check_operation(word)


def _generic_operations(text: str) -> list[str]:
  """Names that are printed as strings, as in "stablehlo.case"(%0).

  Of strings before a parenthesis, only locations and names of functions are
  none: they follow another parenthesis, a comma, a bracket, `@` or `at`.
  """
  names = []
  for match in _STRING.finditer(text):
    if text[match.end() : match.end() + 1] != '(':
      continue
    before = text[max(0, match.start() - 64) : match.start()].rstrip()
    if not before.endswith(('(', ',', '[', '@', ' at')):
      names.append(match[1])
  return names


def _check_operation(name: str) -> None:
  dialect, _, operation = name.partition('.')
  if dialect != 'stablehlo' or operation not in OPERATIONS:
    raise ValueError(f'it holds {name[:80]}')
