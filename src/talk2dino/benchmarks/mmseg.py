"""The one place where mmcv and mmseg are imported: what to install, and their noise at import."""

from __future__ import annotations

import logging
import warnings
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from types import ModuleType

INSTALL = (
    "Install them with: pip install 'setuptools<81' && PYTHONPATH=build_support pip install "
    "--no-build-isolation --no-deps -r requirements-benchmark.txt"
)


@dataclass(frozen=True)
class OpenMMLab:
    """The parts of the two libraries that are used; neither needs a compiled operation."""

    mmcv: ModuleType
    """mmcv or mmcv-full, 1.x."""
    datasets: ModuleType
    """mmseg.datasets."""
    pipelines: ModuleType
    """mmseg.datasets.pipelines."""
    versions: dict[str, str]
    """mmcv and mmseg."""


@lru_cache(maxsize=1)
def load_openmmlab() -> OpenMMLab:
    """Import mmcv and mmseg, quietly.

    Raises:
        ImportError: one is missing or of a version that does not work; says what to install.
    """
    torch_logger = logging.getLogger("torch.utils.cpp_extension")
    level = torch_logger.level
    torch_logger.setLevel(logging.ERROR)  # "No CUDA runtime is found": nothing is compiled here
    levels = {handler: handler.level for handler in logging.root.handlers}
    try:
        with warnings.catch_warnings():
            # mmcv announces its version 2; libraries of 2022 use names deprecated since.
            warnings.simplefilter("ignore")
            mmcv = import_module("mmcv")
            # mmseg logs "Loaded N images" to stderr unless its logger is made before.
            import_module("mmcv.utils").get_logger("mmseg", log_level=logging.WARNING)
            mmseg = import_module("mmseg")
            datasets = import_module("mmseg.datasets")
            pipelines = import_module("mmseg.datasets.pipelines")
    except ImportError as error:
        raise ImportError(
            f"the benchmarks need mmcv 1.7 and mmsegmentation 0.30 ({_reason(error)}). {INSTALL}"
        ) from error
    except AssertionError as error:  # mmseg's own check of mmcv's version
        raise ImportError(f"mmcv and mmsegmentation do not fit: {error}. {INSTALL}") from error
    finally:
        torch_logger.setLevel(level)
        for handler, level in levels.items():  # mmcv silences the warnings of all others
            handler.setLevel(level)
    return OpenMMLab(
        mmcv, datasets, pipelines, {"mmcv": mmcv.__version__, "mmseg": mmseg.__version__}
    )


def _reason(error: ImportError) -> str:
    """The first thing that was missing; mmcv 2 lacks modules which mmcv 1 has."""
    return str(error).splitlines()[0] if str(error) else "not importable"
