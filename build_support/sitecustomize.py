"""Lets mmcv 1.7.2 be installed on Python 3.13 and newer; put this folder on PYTHONPATH for that.

Its setup.py reads its version with `exec(code)` inside a function and then looks into `locals()`.
Since Python 3.13 such an exec leaves the function's variables alone (PEP 667), and the installation
ends in KeyError: '__version__'. Python loads this file at its start; on older versions it does
nothing.
"""

import builtins
import sys

_exec = builtins.exec


def _exec_into_caller(code, *namespaces, **options):
    """`exec` as it was: without namespaces, names are bound where it is called."""
    if namespaces:
        return _exec(code, *namespaces, **options)
    caller = sys._getframe(1)
    return _exec(code, caller.f_globals, caller.f_locals)


if sys.version_info >= (3, 13):
    builtins.exec = _exec_into_caller
