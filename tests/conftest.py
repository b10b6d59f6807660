"""What every test can ask for: a device, and the corpora that are too large for the repository."""

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """The same sums in the same order on every machine; tensors as small as those of tests gain nothing from more."""
    torch.set_num_threads(1)


@pytest.fixture(params=["cpu", "cuda"])
def device(request):
    """Each device in turn; cuda is skipped where there is none."""
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return torch.device(request.param)


@pytest.fixture(scope="session")
def multi30k():
    """The folder with Multi30k's train, val and test_2016_flickr in en, de, fr, cs: $MT_CORPORA/multi30k."""
    folder = Path(os.environ.get("MT_CORPORA", ""), "multi30k")
    if "MT_CORPORA" not in os.environ or not folder.is_dir():
        pytest.skip("no Multi30k: MT_CORPORA names no folder that holds multi30k")
    return folder
