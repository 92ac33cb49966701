import pytest


@pytest.fixture(autouse=True)
def _one_device(one_device):
    """Experiments leave devices to robjax, whose tests have eight."""
