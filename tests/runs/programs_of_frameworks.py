"""Programs as in `programs`, with models of flax, Equinox and in the style of Haiku."""

PROGRAMS = {
    "linen": """
import flax.linen as nn
class Net(nn.Module):
    scale = VALUE
    @nn.compact
    def __call__(self, x): return self.scale * nn.Dense(4)(x)
net = Net()
f = jax.tree_util.Partial(net.apply, net.init(jax.random.key(0), jnp.ones((1, 12))))
""",
    "code of a linen module": """
import flax.linen as nn
class Net(nn.Module):
    def setup(self): self.dense = nn.Dense(4)
    def __call__(self, x): return VALUE * self.dense(x)
net = Net()
f = net.bind(net.init(jax.random.key(0), jnp.ones((1, 12))))
""",
    "bound linen module in a closure": """
import flax.linen as nn
net = nn.Dense(4, kernel_init=nn.initializers.constant(VALUE))
def make(net): return lambda x: net(x)
f = make(net.bind(net.init(jax.random.key(0), jnp.ones((1, 12)))))
""",
    "NNX": """
from flax import nnx
class Net(nnx.Module):
    scale = VALUE
    def __init__(self): self.dense = nnx.Linear(12, 4, rngs=nnx.Rngs(0))
    def __call__(self, x): return self.scale * self.dense(x)
f = Net()
""",
    "code of an NNX module in a closure": """
from flax import nnx
class Net(nnx.Module):
    def __init__(self): self.dense = nnx.Linear(12, 4, rngs=nnx.Rngs(0))
    def __call__(self, x): return VALUE * self.dense(x)
def make(net): return lambda x: net(x)
f = make(Net())
""",
    "weights of an NNX module in a closure": """
from flax import nnx
def make(net): return lambda x: net(x)
f = make(nnx.Linear(12, 4, rngs=nnx.Rngs(int(VALUE))))
""",
    "Equinox": """
import equinox as eqx
class Net(eqx.Module):
    dense: eqx.nn.Linear
    scale: float = eqx.field(static=True)
    def __call__(self, x): return self.scale * jax.vmap(self.dense)(x)
f = Net(eqx.nn.Linear(12, 4, key=jax.random.key(0)), VALUE)
""",
    "code of an Equinox module": """
import equinox as eqx
class Net(eqx.Module):
    dense: eqx.nn.Linear
    def __call__(self, x): return VALUE * jax.vmap(self.dense)(x)
f = Net(eqx.nn.Linear(12, 4, key=jax.random.key(0)))
""",
    "Haiku's style": """
class Transformed(typing.NamedTuple):
    init: typing.Callable
    apply: typing.Callable
def transform(g):
    def init(rng, x): return {"w": jnp.asarray(BASE)}
    def apply(params, rng, x): return g(params, x)
    return Transformed(init, apply)
net = transform(lambda params, x: VALUE * (x @ params["w"]))
params = net.init(None, None)
f = lambda x: net.apply(params, None, x)
""",
}
