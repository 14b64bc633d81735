"""A pytest plugin: the tests use the extension in the folder FASTNAS_EXTENSION instead of the installed one."""

import os

import fastnas

fastnas.__path__.insert(0, os.environ["FASTNAS_EXTENSION"])

from fastnas._library import _C  # noqa: E402

assert _C.build_info()["build_type"] == "Sanitize", f"{_C.__file__} was not built with FASTNAS_SANITIZE"
