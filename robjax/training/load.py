"""Trained models from their weights or their folder, and runs that go on from others.

What is written most:

    logits_fn = training.logits_fn(model, state.weights)       what `fit` returned
    logits_fn = training.load("results/run")                   what it left on disk
    state = training.fit(model, data, extends="results/run")   goes on from there
"""

import dataclasses
import hashlib
import importlib
import pathlib
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from robjax.checks import check_flags
from robjax.data import Dataset
from robjax.runs import checkpoints, files, provenance
from robjax.training.arguments import check_variables
from robjax.training.config import FitConfig
from robjax.training.state import TrainState
from robjax.training.trainable import Nnx, Trainable, Variables, trainable


def logits_fn(model: Any, weights: Variables) -> Callable[[jax.Array], jax.Array]:
    """The function images -> logits of a trained model, in inference mode.

    >>> from robjax.models import Linear
    >>> variables = Linear(3).init(jax.random.key(0), jnp.ones((1, 4)))
    >>> logits_fn(Linear(3), variables)(jnp.ones((2, 4))).shape
    (2, 3)

    Args:
      model: as in `fit`.
      weights: `TrainState.weights`.

    Returns:
      What attacks, metrics and evaluations take. Of an NNX module it is a copy of the
      module with these weights, after ``.eval()``, where ``__call__`` takes images
      alone.

    Raises:
      ValueError: `model` is none that `fit` takes.
    """
    if not isinstance(weights, Mapping) or not weights:
        raise ValueError(f"weights must be the variables of the model, got {weights!r}")
    return trainable(model).bind(weights)


def load(
    run_dir: files.PathLike, model: Any = None, *, best: bool = True
) -> Callable[[jax.Array], jax.Array]:
    """The trained model of a run, from its latest checkpoint, ready for attacks.

    >>> from robjax.data import from_arrays
    >>> from robjax.models import MLP
    >>> from robjax.training import FitConfig, fit
    >>> import tempfile
    >>> data = from_arrays(np.zeros((8, 1, 1, 1)), np.arange(8) % 2)
    >>> config = FitConfig(epochs=1, batch_size=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     run = {"run_dir": f"{folder}/run", "progress": False}
    ...     state = fit(MLP(2, widths=(4,)), data, config=config, **run)
    ...     logits_fn = load(f"{folder}/run")
    >>> x = jnp.ones((3, 1, 1, 1))
    >>> bool(jnp.array_equal(logits_fn(x), MLP(2, (4,)).apply(state.weights, x)))
    True

    Args:
      run_dir: of `fit`.
      model: that of the run. It may be left out where it is a linen module whose class
        can be imported and whose fields are numbers, strings, flags, None or tuples of
        these. Then the run says how to make it. Nothing is unpickled, but the module
        of the class is imported.
      best: take the weights that `TrainState.weights` gives, those that callbacks as
        `callbacks.best` have kept; False: those of the last step, or their running
        mean.

    Raises:
      ValueError: there is no checkpoint, it is corrupt, it does not fit the model, or
        the model must be given and is not.

    Warns:
      UserWarning: the linen module that is given has another name or other fields than
        that of the run.
    """
    check_flags(best=best)
    if model is not None:
        trainable(model)
    run = _Saved.read(run_dir, "run_dir")
    given = model
    adapted = trainable(_rebuild(run) if given is None else given)
    name = f"the weights in {run_dir}"
    weights = run.weights(best=best)
    weights = check_variables(adapted, weights, run.about["image"], name=name)
    then = run.run["model"]["words"]
    if isinstance(given, nn.Module) and (now := provenance.describe(given)) != then:
        warnings.warn(
            f"the model of {run_dir} was {then}, that given is {now}: the weights fit, "
            "but it may compute another function",
            stacklevel=2,
        )
    return adapted.bind(weights)


class _Saved(NamedTuple):
    """The latest checkpoint of a run.

    Attributes:
      path: of the checkpoint.
      run: what decided the result, as `describe_run` has it.
      about: see `describe_model`.
      extra: of its `Meter`.
      tree: the state as nested dictionaries.
    """

    path: pathlib.Path
    run: Mapping[str, Any]
    about: Mapping[str, Any]
    extra: Mapping[str, Any]
    tree: Mapping[str, Any]

    @classmethod
    def read(cls, folder: files.PathLike, name: str) -> "_Saved":
        path = files.as_path(folder, name)
        found = checkpoints.latest_checkpoint(path / "checkpoints")
        if found is None:
            raise ValueError(
                f"{name}={str(folder)!r} must be the folder of a run that has ended an "
                "epoch, but holds no checkpoint"
            )
        latest, manifest = found
        config = manifest["config"]
        parts = ("run", "about", "extra")
        if not isinstance(config, dict) or not all(config.get(part) for part in parts):
            raise ValueError(
                f"{name}={str(folder)!r} holds checkpoints that do not say of which "
                "run they are"
            )
        tree = checkpoints.load_tree(latest)
        run, about, extra = (config[part] for part in parts)
        return cls(latest, run, about, extra, tree)

    def weights(self, *, best: bool) -> Any:
        """The weights that `TrainState.weights` gives, or those without callbacks."""
        for kept in reversed(self.tree.get("callbacks") or []):
            if best and kept.get("weights"):
                return kept["weights"]
        return self.tree.get("ema") or self.tree["variables"]


# ------------------------------------------------------------------ how to make a model


def describe_model(
    model: Any, data: Dataset, steps_per_epoch: int, origin: "Origin | None" = None
) -> dict[str, Any]:
    """What `load` and `Origin` have to know of a run.

    >>> from robjax.data import load
    >>> from robjax.models import MLP
    >>> about = describe_model(MLP(10, widths=(5,)), load("digits", "test"), 3)
    >>> about["class"], about["fields"]["widths"], about["image"]
    ('robjax.models.mlp:MLP', (5,), [8, 8, 1])

    Returns:
      "image", the shape of one; "steps_per_epoch"; where it is known "class" and
      "fields", how to make the model; "extends", what the run goes on from, if it does.
    """
    about: dict[str, Any] = {
        "image": list(data.images.shape[1:]),
        "steps_per_epoch": steps_per_epoch,
    }
    if origin is not None:
        about["extends"] = {
            "folder": origin.folder,
            "step": origin.step,
            "sha256": origin.sha256,
        }
    kind = type(model)
    if not isinstance(model, nn.Module) or kind.__module__ == "__main__":
        return about
    fields = {
        field.name: getattr(model, field.name)
        for field in dataclasses.fields(model)
        if field.init and field.name not in ("parent", "name")
    }
    name = f"{kind.__module__}:{kind.__qualname__}"
    if _importable(name) is kind and all(map(_is_plain, fields.values())):
        about |= {"class": name, "fields": fields}
    return about


def _is_plain(value: object) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return type(value) in (int, float, str, bool, type(None))


def _importable(name: str) -> Any:
    """What a module that is imported already offers under "module:name", or None."""
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    return found


def _rebuild(run: _Saved) -> nn.Module:
    """Makes the model of a run anew; ValueError if the run does not say how."""
    give = "give it, as in training.load(run_dir, model)"
    if "class" not in run.about:
        raise ValueError(f"the run does not say how to make its model: {give}")
    name = run.about["class"]
    try:
        importlib.import_module(name.partition(":")[0])
    except ImportError as error:
        raise ValueError(f"the model's class {name} is not there: {give}") from error
    kind = _importable(name)
    if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
        raise ValueError(f"{name} is no class of flax.linen modules: {give}")
    fields = {name: _tupled(value) for name, value in run.about["fields"].items()}
    try:
        model = kind(**fields)
    except TypeError as error:
        raise ValueError(f"{name} has other fields than then: {give}") from error
    then, now = run.run["model"]["words"], provenance.describe(model)
    if then != now:
        raise ValueError(f"the model was {then}, and {now} now: {give}")
    return model


def _tupled(value: Any) -> Any:
    return tuple(map(_tupled, value)) if isinstance(value, list) else value


# ------------------------------------------------------------------ runs that go on


class Origin(NamedTuple):
    """The state of an earlier run that a run starts from.

    Attributes:
      folder: of the run, as the caller wrote it.
      step: that it had taken.
      epochs: that it had ended.
      sha256: of the manifest of the checkpoint, which has the checksums of all its
        files.
      tree: the state as nested dictionaries.
    """

    folder: str
    step: int
    epochs: int
    sha256: str
    tree: Mapping[str, Any]

    @classmethod
    def read(cls, folder: files.PathLike) -> "Origin":
        """Reads the latest checkpoint of a run.

        Raises:
          ValueError: there is none, or it stands inside an epoch.
        """
        run = _Saved.read(folder, "extends")
        if run.extra["count"]:
            raise ValueError(
                f"extends={str(folder)!r} must be a run that has ended its epoch, "
                "but it was stopped inside one: resume it first"
            )
        step = int(run.tree["step"])
        digest = hashlib.sha256((run.path / "manifest.json").read_bytes()).hexdigest()
        epochs = step // run.about["steps_per_epoch"]
        return cls(str(folder), step, epochs, digest, run.tree)

    @property
    def words(self) -> str:
        return f"step {self.step}, sha256 {self.sha256}"

    def continued(self, start: TrainState, steps_per_epoch: int) -> TrainState:
        """The state to go on from.

        Epochs are counted on. The optimizer's state and the running mean are those of
        the run where they have the same structure, else those of `start`.

        Args:
          start: a fresh state with the variables of the run.
          steps_per_epoch: of the run that goes on.
        """
        opt_state = _like(start.opt_state, self.tree.get("opt_state"))
        ema = None if start.ema is None else _like(start.ema, self.tree.get("ema"))
        return start._replace(
            step=jnp.int32(self.epochs * steps_per_epoch),
            opt_state=start.opt_state if opt_state is None else opt_state,
            ema=start.ema if ema is None else ema,
        )


def check_start(
    model: Trainable,
    data: Dataset,
    config: FitConfig,
    variables: Variables | None,
    origin: Origin | None,
) -> Variables | None:
    """The variables that training starts from; None: those that the seed decides.

    >>> from robjax.data import load
    >>> from robjax.models import Linear
    >>> model, data = trainable(Linear(10)), load("digits", "test")
    >>> check_start(model, data, FitConfig(), None, None) is None
    True

    Args:
      model, data, config, variables: as in `fit`.
      origin: what `fit`'s `extends` leads to.

    Raises:
      ValueError: they do not fit the model, there are two of them, or no epoch is left.
    """
    image = data.images.shape[1:]
    if origin is None:
        if variables is None:
            return model.start if isinstance(model, Nnx) else None
        return check_variables(model, variables, image)
    if variables is not None:
        raise ValueError("variables must not be given with extends, which has its own")
    if config.epochs <= origin.epochs:
        raise ValueError(
            f"epochs must be more than the {origin.epochs} that "
            f"extends={origin.folder!r} has, as they count, got {config.epochs}"
        )
    name = f"the weights in {origin.folder}"
    return check_variables(model, origin.tree["variables"], image, name=name)


def _like(tree: Any, saved: Any) -> Any:
    """A saved tree in the structure of another one; None if it has another one."""
    found = {names: leaf for names, leaf in _named_leaves(saved)}
    wanted = _named_leaves(tree)
    same = found.keys() == {names for names, _ in wanted} and all(
        (np.shape(found[names]), np.asarray(found[names]).dtype)
        == (np.shape(leaf), np.asarray(leaf).dtype)
        for names, leaf in wanted
    )
    if not same:
        return None
    leaves = [jnp.array(found[names]) for names, _ in wanted]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def _named_leaves(tree: Any) -> list[tuple[tuple[str, ...], Any]]:
    """The leaves of a tree by their paths, fields and keys named alike."""

    def name(entry: Any) -> str:
        for attribute in ("name", "key", "idx"):
            if hasattr(entry, attribute):
                return str(getattr(entry, attribute))
        return str(entry)

    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return [(tuple(map(name, path)), leaf) for path, leaf in leaves]
