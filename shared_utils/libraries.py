"""Third-party libraries that like to talk: their progress bars and remarks stay off stderr, unless the user wants details."""

import importlib
import logging
import os
import warnings


def quiet_libraries(*names: str, verbose: bool = False) -> None:
    """Import libraries (`transformers`, `diffusers`) with their remarks off; call it before anything else imports them.

    `verbose` keeps remarks and Python warnings. Progress bars are off in any case: the console shows its own.
    """
    level = logging.WARNING if verbose else logging.ERROR
    if not verbose:
        warnings.simplefilter("ignore")
    # At import torch sets up its loggers anew, and libraries that build on it make it talk while they are imported.
    importlib.import_module("torch")
    for name in ("torch", "torchao", "peft", "bitsandbytes", "accelerate"):
        logging.getLogger(name).setLevel(level)
    for name in names:
        # Read at import; the user's own setting is stronger.
        os.environ.setdefault(f"{name.upper()}_VERBOSITY", "warning" if verbose else "error")
    for name in names:
        importlib.import_module(name)
        importlib.import_module(f"{name}.utils.logging").disable_progress_bar()
    from huggingface_hub.utils import disable_progress_bars

    disable_progress_bars()
