"""Programs in two versions, for tests of what makes two runs the same.

Each defines `f`, a function of arrays [B, 12], and says VALUE where its versions
differ. A program is run by `exec`, as a script or a notebook runs.
"""

import sys
import types

from tests.runs import programs_of_frameworks

HEAD = """
import argparse, collections, dataclasses, enum, functools, typing
import jax, jax.numpy as jnp, numpy as np
BASE = np.linspace(-1, 1, 48).reshape(12, 4).astype(np.float32)
"""

PROGRAMS = programs_of_frameworks.PROGRAMS | {
    "variable of the module": """
W = VALUE * BASE
def f(x): return x @ W
""",
    "number of the module": """
scale = VALUE
def f(x): return scale * (x @ BASE)
""",
    "entry of a dictionary": """
options = {"scale": VALUE}
def f(x): return options["scale"] * (x @ BASE)
""",
    "variable that a helper reads": """
W = VALUE * BASE
def helper(x): return x @ W
def f(x): return helper(x)
""",
    "variable that a lambda inside reads": """
scale = VALUE
def f(x): return jax.vmap(lambda row: scale * (row @ BASE))(x)
""",
    "variable that a comprehension reads": """
scales = [1, VALUE]
def f(x): return sum([s * (x @ BASE) for s in scales])
""",
    "function in a variable": """
def one(x): return VALUE * x
layers = [jnp.tanh, one]
def f(x): return layers[1](layers[0](x @ BASE))
""",
    "attribute of another module": """
other = module("other", "W = np.float32(VALUE)")
def f(x): return other.W * (x @ BASE)
""",
    "function of another module": """
other = module("other", "def g(x): return VALUE * x")
def f(x): return other.g(x @ BASE)
""",
    "module under another name": """
other = module("other", "W = np.float32(VALUE)")
def f(x):
    again = other
    return again.W * (x @ BASE)
""",
    "module in a closure": """
def make(other):
    return lambda x: other.W * (x @ BASE)
f = make(module("other", "W = np.float32(VALUE)"))
""",
    "import inside the function": """
module("some_other", "W = np.float32(VALUE)")
def f(x):
    from some_other import W
    return W * (x @ BASE)
""",
    "module imported inside the function": """
module("some_other", "W = np.float32(VALUE)")
def f(x):
    import some_other
    return some_other.W * (x @ BASE)
""",
    "code": """
def f(x): return VALUE * (x @ BASE)
""",
    "operator in the code": """
def f(x): return (x @ BASE) ** int(2 if VALUE > 1 else 1)
""",
    "code of a helper": """
def helper(x): return VALUE * x
def f(x): return helper(x @ BASE)
""",
    "code of a function inside": """
def f(x):
    def inside(row): return VALUE * row
    return jax.vmap(inside)(x @ BASE)
""",
    "code behind a handler": """
def f(x):
    try: return x.no_attribute
    except AttributeError: return VALUE * (x @ BASE)
""",
    "default value": """
def f(x, scale=VALUE): return scale * (x @ BASE)
""",
    "keyword-only default value": """
def f(x, *, scale=VALUE): return scale * (x @ BASE)
""",
    "keyword-only default value of a helper": """
def helper(x, *, scale=np.full(3, VALUE)): return scale[0] * x
def f(x): return helper(x @ BASE)
""",
    "attribute of the function": """
def f(x): return f.scale * (x @ BASE)
f.scale = VALUE
""",
    "closure": """
def make(scale): return lambda x: scale * (x @ BASE)
f = make(VALUE)
""",
    "closure of a closure": """
def make(scale):
    def inner(x): return scale * x
    return lambda x: inner(x @ BASE)
f = make(VALUE)
""",
    "many closures in each other": """
def compose(g, h): return lambda x: h(g(x))
f = lambda x: VALUE * (x @ BASE)
for _ in range(150): f = compose(f, jnp.tanh)
""",
    "functools.cache": """
@functools.cache
def weights(): return VALUE * BASE
def f(x): return x @ weights()
""",
    "functools.lru_cache": """
@functools.lru_cache(maxsize=3)
def scale(): return VALUE
def f(x): return scale() * (x @ BASE)
""",
    "functools.partial": """
def g(x, scale): return scale * (x @ BASE)
f = functools.partial(g, scale=VALUE)
""",
    "Partial of a Partial": """
def g(w, bias, x): return x @ w + bias
f = jax.tree_util.Partial(jax.tree_util.Partial(g, VALUE * BASE), 1.0)
""",
    "jit of vmap": """
W = VALUE * BASE
f = jax.jit(jax.vmap(lambda x: x @ W))
""",
    "checkpoint": """
W = VALUE * BASE
@jax.checkpoint
def f(x): return x @ W
""",
    "rule for gradients": """
@jax.custom_vjp
def straight(x): return jnp.round(x)
straight.defvjp(lambda x: (jnp.round(x), None), lambda _, g: (VALUE * g,))
def f(x): return straight(x @ BASE)
""",
    "own decorator": """
def scaled(g):
    @functools.wraps(g)
    def wrapper(x): return VALUE * g(x)
    return wrapper
@scaled
def f(x): return x @ BASE
""",
    "class as a decorator": """
class Scaled:
    def __init__(self, g): functools.update_wrapper(self, g)
    def __call__(self, x): return self.__wrapped__(x)
@Scaled
def f(x): return VALUE * (x @ BASE)
""",
    "method of a builtin": """
get = {"scale": VALUE}.get
def f(x): return get("scale") * (x @ BASE)
""",
    "object": """
class Net:
    def __init__(self, scale): self.scale = scale
    def __call__(self, x): return self.scale * (x @ BASE)
f = Net(VALUE)
""",
    "method of an object": """
class Net:
    def __init__(self, scale): self.scale = scale
    def logits(self, x): return self.scale * (x @ BASE)
f = Net(VALUE).logits
""",
    "object in a variable": """
class Net:
    def __init__(self, scale): self.scale = scale
    def logits(self, x): return self.scale * (x @ BASE)
net = Net(VALUE)
def f(x): return net.logits(x)
""",
    "attribute of a class": """
class Net:
    scale = VALUE
    def __call__(self, x): return self.scale * (x @ BASE)
f = Net()
""",
    "attribute of a base class": """
class Base:
    scale = VALUE
class Net(Base):
    def __call__(self, x): return self.scale * (x @ BASE)
f = Net()
""",
    "private attribute": """
class Net:
    __scale = VALUE
    def __call__(self, x): return self.__scale * (x @ BASE)
f = Net()
""",
    "attribute of a class that a function reads": """
class Options:
    scale = VALUE
def f(x): return Options.scale * (x @ BASE)
""",
    "code of a method": """
class Net:
    def __call__(self, x): return VALUE * (x @ BASE)
f = Net()
""",
    "code of a method of a base class": """
class Base:
    def forward(self, x): return VALUE * (x @ BASE)
class Net(Base):
    def __call__(self, x): return super().forward(x)
f = Net()
""",
    "base class": """
class One:
    def __call__(self, x): return x @ BASE
class Two(One):
    def __call__(self, x): return 2 * super().__call__(x)
class Net(One if VALUE == 1 else Two): pass
f = Net()
""",
    "variable that a method reads": """
W = VALUE * BASE
class Net:
    def __call__(self, x): return x @ W
f = Net()
""",
    "static method, class method, property": """
class Net:
    @staticmethod
    def one(x): return VALUE * x
    @classmethod
    def two(cls, x): return cls.one(x)
    @property
    def three(self): return self.two
    def __call__(self, x): return self.three(x @ BASE)
f = Net()
""",
    "property": """
class Net:
    @property
    def scale(self): return VALUE
    @functools.cached_property
    def weights(self): return BASE
    def __call__(self, x): return self.scale * (x @ self.weights)
f = Net()
""",
    "cached property": """
class Net:
    @functools.cached_property
    def scale(self): return VALUE
    def __call__(self, x): return self.scale * (x @ BASE)
f = Net()
""",
    "method under jit": """
class Net:
    @functools.partial(jax.jit, static_argnums=0)
    def __call__(self, x): return VALUE * (x @ BASE)
f = Net()
""",
    "__slots__": """
class Net:
    __slots__ = ("scale", "never_set")
    def __init__(self, scale): self.scale = scale
    def __call__(self, x): return self.scale * (x @ BASE)
f = Net(VALUE)
""",
    "__slots__ of a base class": """
class Base:
    __slots__ = ("__scale",)
    def __init__(self, scale): self.__scale = scale
    def __call__(self, x): return self.__scale * (x @ BASE)
class Net(Base):
    __slots__ = ("other",)
f = Net(VALUE)
""",
    "repr of its own": """
class Net:
    def __init__(self, scale): self.scale = scale
    def __call__(self, x): return self.scale * (x @ BASE)
    def __repr__(self): return "Net()"
f = Net(VALUE)
""",
    "repr with an address": """
class Net:
    def __init__(self, scale): self.scale = scale
    def __call__(self, x): return self.scale * (x @ BASE)
    def __repr__(self): return f"<Net at 0X{id(self):X}>"
f = Net(VALUE)
""",
    "field left out of the repr": """
@dataclasses.dataclass(frozen=True)
class Net:
    scale: float = dataclasses.field(default=3, repr=False)
    def __call__(self, x): return self.scale * (x @ BASE)
f = Net(VALUE)
""",
    "static field of a pytree": """
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    w: jax.Array
    scale: float = dataclasses.field(metadata=dict(static=True))
    def __call__(self, x): return self.scale * (x @ self.w)
f = Net(jnp.asarray(BASE), VALUE)
""",
    "method of a pytree": """
@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Net:
    w: jax.Array
    def __call__(self, x): return VALUE * (x @ self.w)
f = Net(jnp.asarray(BASE))
""",
    "NamedTuple": """
class Net(typing.NamedTuple):
    scale: float
    def __call__(self, x): return self.scale * (x @ BASE)
f = Net(VALUE)
""",
    "method of a NamedTuple": """
class Net(typing.NamedTuple):
    w: np.ndarray
    def __call__(self, x): return VALUE * (x @ self.w)
f = Net(BASE)
""",
    "subclass of dict": """
class Net(dict):
    def __call__(self, x): return self["scale"] * (x @ BASE)
f = Net(scale=VALUE)
""",
    "subclass of float": """
class Scale(float):
    def __repr__(self): return "Scale"
scale = Scale(VALUE)
def f(x): return float(scale) * (x @ BASE)
""",
    "subclass of ndarray": """
class Weights(np.ndarray): pass
W = (VALUE * BASE).view(Weights)
def f(x): return x @ np.asarray(W)
""",
    "member of an enumeration": """
class Scale(enum.Enum):
    MINE = VALUE
def f(x): return Scale.MINE.value * (x @ BASE)
""",
    "object inside an object": """
class Layer:
    __slots__ = ("scale",)
class Net:
    def __init__(self):
        self.layer, self.itself = Layer(), self
        self.layer.scale = VALUE
    def __call__(self, x): return self.layer.scale * (x @ BASE)
f = Net()
""",
    "two objects that know each other": """
class Net:
    def __init__(self, scale): self.scale = scale
    def __call__(self, x): return self.other.scale * (x @ BASE)
f, other = Net(1), Net(VALUE)
f.other, other.other = other, f
""",
    "state of a generator of random numbers": """
class Net:
    def __init__(self): self.generator = np.random.default_rng(int(VALUE))
    def __call__(self, x):
        copy = np.random.Generator(np.random.PCG64())
        copy.bit_generator.state = self.generator.bit_generator.state
        return x @ copy.normal(size=(12, 4)).astype(np.float32)
f = Net()
""",
    "collection": """
items = collections.deque([VALUE])
def f(x): return items[0] * (x @ BASE)
""",
    "set": """
names = {"a", "b", "c", str(VALUE)}
def f(x): return float(max(names - {"a", "b", "c"})) * (x @ BASE)
""",
    "namespace": """
options = argparse.Namespace(scale=VALUE, other=1)
def f(x):
    found = options
    return found.scale * (x @ BASE)
""",
    "one of many numbers": """
numbers = [0.0] * 5000
numbers[4321] = VALUE
def f(x): return numbers[4321] * (x @ BASE)
""",
    "estimator": """
from sklearn.linear_model import LinearRegression
line = LinearRegression().fit(np.eye(12), VALUE * BASE)
def make(line): return lambda x: x @ line.coef_.T.astype(np.float32)
f = make(line)
""",
    "array of objects": """
parts = np.array([None, VALUE], dtype=object)
def f(x): return parts[1] * (x @ BASE)
""",
}


def run(source: str, value: float = 1.0, *, name: str = "victim"):
    """`f` of a program at one of its versions."""
    namespace = {"__name__": name, "module": _module}
    code = (HEAD + source).replace("VALUE", repr(value))
    exec(code, namespace)
    return namespace["f"]


def _module(name: str, source: str) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(HEAD + source, vars(made))
    sys.modules[name] = made
    return made
