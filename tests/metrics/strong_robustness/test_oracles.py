"""Maps of an oracle, their distances, and the projection onto what it does not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from sklearn.decomposition import PCA

from robjax.metrics import strong_robustness as sr
from robjax.metrics.strong_robustness.oracles import check_oracle
from robjax.metrics.strong_robustness.projection import nearest

RNG = np.random.default_rng(0)
X = RNG.uniform(size=(6, 2, 3)).astype(np.float32)
Y = RNG.uniform(size=(6, 2, 3)).astype(np.float32)


@pytest.mark.parametrize("norm", [1, 2, np.inf])
def test_distances_are_norms_of_what_the_oracle_sees(norm):
    a = RNG.normal(size=(2, 6))
    change = (X.astype(float) - Y).reshape(6, -1)
    expected = {
        sr.identity(norm=norm): np.linalg.norm(change, norm, axis=1),
        sr.features(lambda x: x**2, norm=norm): np.linalg.norm(
            (X**2 - Y**2).reshape(6, -1), norm, axis=1
        ),
    }
    for oracle, wanted in expected.items():
        np.testing.assert_allclose(sr.oracle_distance(oracle, X, Y), wanted, rtol=1e-5)
    found = sr.oracle_distance(sr.linear(a, norm=norm), X, Y)
    wanted = np.linalg.norm(change @ a.T, norm, axis=1)
    np.testing.assert_allclose(found, wanted, rtol=1e-6)


def test_pca_is_that_of_a_peer_and_its_projection_hides_nothing_from_it():
    images = RNG.normal(size=(40, 2, 3)) * [1.0, 2.0, 3.0] + 5
    oracle = sr.pca(images, 3)
    peer = PCA(3, svd_solver="full").fit(images.reshape(40, -1))
    projected = peer.inverse_transform(peer.transform(X.reshape(6, -1)))
    np.testing.assert_allclose(oracle.project(X).reshape(6, -1), projected, atol=1e-5)
    signs = np.sign(np.sum(oracle.matrix * peer.components_, axis=1))
    wanted = peer.transform(X.reshape(6, -1)) * signs
    np.testing.assert_allclose(oracle(jnp.asarray(X)), wanted, atol=1e-5)
    assert sr.oracle_distance(oracle, X, oracle.project(X)).max() < 1e-5


def test_rank_and_pseudoinverse():
    a = np.array([[1.0, 2, 0], [2, 4, 0], [0, 0, 1e-3]])
    oracle = sr.linear(a)
    np.testing.assert_allclose(oracle.inverse, np.linalg.pinv(a), atol=1e-9)
    assert len(oracle.basis) == 2
    assert len(sr.linear(a, tolerance=0.1).basis) == 1


def test_projection_is_that_of_a_quadratic_program():
    rng = np.random.default_rng(1)
    project = jax.jit(lambda *each: nearest(*each, rounds=60))
    with jax.enable_x64(True):
        for scale in (0.1, 0.3, 1.0):
            basis = np.linalg.qr(rng.normal(size=(7, 3)))[0].T
            low, high = -rng.uniform(size=7), rng.uniform(size=7)
            low[:3] = 0  # pixels that lie at their bound
            v, target = scale * rng.normal(size=7), basis @ rng.uniform(low, high)
            found = np.asarray(project(v, target, basis, low, high))
            assert (found >= low).all() and (found <= high).all()
            np.testing.assert_allclose(basis @ found, target, atol=1e-10)
            peer = optimize.minimize(
                lambda r, v=v: 0.5 * np.sum((r - v) ** 2),
                np.zeros(7),
                jac=lambda r, v=v: r - v,
                bounds=list(zip(low, high, strict=True)),
                constraints={
                    "type": "eq",
                    "fun": lambda r, b=basis, t=target: b @ r - t,
                },
                method="SLSQP",
                options={"ftol": 1e-14, "maxiter": 500},
            )
            np.testing.assert_allclose(found, peer.x, atol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: sr.identity(norm=np.array([1, 2])), "norm must be 1, 2 or inf"),
        (lambda: sr.identity(norm=3), "norm must be 1, 2 or inf, got 3"),
        (lambda: sr.linear([1.0]), r"matrix must have shape \[M, n\]"),
        (lambda: sr.linear([[np.nan]]), "matrix must be finite"),
        (lambda: sr.linear([[0.0]]), "matrix must not be 0"),
        (lambda: sr.linear([[1.0]], tolerance=1.0), "tolerance must be"),
        (lambda: sr.pca(X, 6), "components must be at most 5"),
        (lambda: sr.features(3), "fn must be a function of images, got 3"),
        (
            lambda: check_oracle(lambda x: x[:, 0] > 0, X),
            "oracle must return one float",
        ),
        (lambda: check_oracle(sr.linear([[1.0]]), X), "a matrix of 6 columns"),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
