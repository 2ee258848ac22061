"""What every script needs: command line, run folder, weights, telemetry and the frame they run in. Nothing heavy at import."""

__version__ = "0.1.0"

_HOME = {
    "ArgsParser": "args",
    "ConfigFile": "config_file",
    "OutputDir": "output_dir",
    "HuggingFaceDownloader": "hugging_face",
    "OtelSetup": "telemetry",
    "SpanCollector": "telemetry",
    "OtelLogger": "telemetry",
}


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module 'shared_utils' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"shared_utils.{_HOME[name]}"), name)
