import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # before the hub client reads it: no test may wait for a network

import jaxtyping
import pytest
import torch
from hypothesis import HealthCheck, settings
from transformers import AutoTokenizer
from transformers.utils import logging as hf_logging

from tests.checkpoints import save_tiny
from tests.tiny import TOKENIZER, tiny_hf

torch.set_num_threads(1)
os.environ["TOKENIZERS_PARALLELISM"] = "false"
hf_logging.set_verbosity_error()
hf_logging.disable_progress_bar()
# Of fuzz tests, chosen by the environment variable HYPOTHESIS_PROFILE; other tests have settings of their own.
slow = [HealthCheck.too_slow]
settings.register_profile("suite", deadline=None, max_examples=50, derandomize=True, suppress_health_check=slow)
settings.register_profile("fuzz", deadline=None, max_examples=2000, print_blob=True, suppress_health_check=slow)

CHECKS_SHAPES = pytest.StashKey[bool]()
ONE_IN = 8  # cases of a test function have their shapes checked, the first among them: it doubles the time that a case takes


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    cases: Counter[str] = Counter()
    for item in items:
        function = item.nodeid.partition("[")[0]
        item.stash[CHECKS_SHAPES] = cases[function] % ONE_IN == 0
        cases[function] += 1


@pytest.fixture(autouse=True)
def shapes_checked(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shapes and types of the library's arguments and results are checked in one case of several."""
    jaxtyping.config.update("jaxtyping_disable", not request.node.stash[CHECKS_SHAPES])
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(scope="session")
def tokenizer():
    return AutoTokenizer.from_pretrained(TOKENIZER)


@pytest.fixture(scope="session")
def bert_twin():
    """A tiny BertForPreTraining, and the hooked model with its weights and the small tokenizer."""
    from encoderlens import HookedEncoder

    hf_model = tiny_hf("BertForPreTraining", seed=0)
    tokenizer = AutoTokenizer.from_pretrained(TOKENIZER)
    return hf_model, HookedEncoder.from_pretrained(hf_model=hf_model, tokenizer=tokenizer, device="cpu")


@pytest.fixture
def bert(bert_twin):
    """The hooked model of the twin; hooks and flags that a test leaves on are an error of that test."""
    model = bert_twin[1]
    yield model
    left = model.list_hooks()
    model.reset_hooks(including_permanent=True)
    for flag in model.cfg.FLAGS:
        setattr(model.cfg, flag, False)
    model.task = "masked_lm"
    assert not left, f"hooks left on: {list(left)}"


@pytest.fixture
def unchecked(shapes_checked: None) -> None:
    """Types are not checked, as in a user's own run, so that a wrong one gets through to our own message."""
    jaxtyping.config.update("jaxtyping_disable", True)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Path]]:
    """A tiny model of each class and the folder it is saved to, which no test may change."""
    made: dict[str, tuple[Any, Path]] = {}

    def get(hf_class: str) -> tuple[Any, Path]:
        if hf_class not in made:
            folder = tmp_path_factory.mktemp(hf_class)
            made[hf_class] = save_tiny(hf_class, folder), folder
        return made[hf_class]

    return get


@pytest.fixture
def folder_of(saved: Callable[[str], tuple[Any, Path]], tmp_path: Path) -> Callable[[str], Path]:
    """A folder of one's own, with a tiny model of a class."""
    return lambda hf_class: shutil.copytree(saved(hf_class)[1], tmp_path / hf_class)
